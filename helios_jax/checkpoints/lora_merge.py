"""Merging LoRA files into a transformer's weights.

    W <- W + scale (alpha / rank) B A           low-rank updates; A [rank, in], B [out, rank]               (1)
    W <- W + scale dW                           dense updates                                               (2)

A patch embedding's A is a convolution kernel [rank, in, frames, rows, columns] and its B a pointwise one. The
products are computed in fp32 and each weight is rounded once, to the dtype that it is stored in.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.checkpoints.components import raise_problems
from helios_jax.checkpoints.key_tables import TRANSFORMER, Entry, Layout, published_entries
from helios_jax.checkpoints.lora_files import LoraDelta, read_lora
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.typing import AnyArray, Array, Float, Path


def merge_lora_file[M: ConfiguredModule](
    transformer: Network[M], path: Path, scale: float = 1.0, *, donate: bool = False
) -> Network[M]:
    """Merges a LoRA file into a transformer, on its device(s).

    Args:
        transformer: The transformer; its arrays stay valid, since running streams may use them.
        path: See ``read_lora``.
        scale: Strength; -scale undoes an earlier merge up to rounding.
        donate: Give up the transformer's arrays. The merge then needs memory for one more layer, instead of a second
            copy of every parameter that changes.

    Returns:
        The merged transformer. Parameters that the file does not touch are shared with ``transformer``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The errors of ``read_lora``; updates of tensors that this transformer does not have, or has in
            another shape (all listed).
    """
    deltas = read_lora(path)
    entries = published_entries(transformer.module, TRANSFORMER)
    _check_fit(path, deltas, entries)
    updates = collections.defaultdict(list)
    for name, delta in deltas.items():
        updates[entries[name].path].append((entries[name], delta))
    state = dict(nnx.to_flat_state(transformer.params))
    for parameter, changes in updates.items():
        array = state[parameter][...]
        home = array.sharding
        # Parameters in host memory are moved to the device one at a time, and back after the merge. ``_add`` donates
        # its argument, so a caller who keeps the transformer needs a copy: ``may_alias=False`` makes ``device_put``
        # copy even if the array is on the device already.
        array = jax.device_put(array, home.with_memory_kind("device"), may_alias=None if donate else False)
        for entry, delta in changes:
            weight = np.float32(scale * delta.weight)
            array = _add(array, entry.layer, delta.factors, weight, entry.layout, entry.columns)
        state[parameter] = state[parameter].replace(jax.device_put(array, home))
    return dataclasses.replace(transformer, params=nnx.from_flat_state(list(state.items())))


@functools.partial(jax.jit, static_argnames=("layout", "columns"), donate_argnames="parameter")
def _add(
    parameter: Array,
    layer: int | Array | None,
    factors: tuple[AnyArray, ...],
    weight: AnyArray,
    layout: Layout,
    columns: slice | None = None,
) -> Array:
    """Adds an update to (a layer, columns of) a parameter in place."""
    # One call per published tensor, so only one tensor's fp32 product exists at a time. A stack's layer is
    # traced: all layers of a stack share a program.
    place = (..., columns or slice(None)) if layer is None else (layer, ..., columns or slice(None))
    old = parameter[place]
    new = (old.astype(jnp.float32) + weight * layout.to_ours(_product(*factors))).astype(old.dtype)
    return parameter.at[place].set(new)


def _product(up: AnyArray, down: AnyArray | None = None) -> Float[Array, "..."]:
    up = jnp.asarray(up, jnp.float32)
    if down is None:
        return up
    flat = jnp.asarray(down, jnp.float32).reshape(down.shape[0], -1)
    product = jnp.matmul(up.reshape(up.shape[0], -1), flat, precision=jax.lax.Precision.HIGHEST)
    return product.reshape(up.shape[0], *down.shape[1:])


def _check_fit(path: Path, deltas: Mapping[str, LoraDelta], entries: Mapping[str, Entry]) -> None:
    """Raises ValueError unless the transformer has a matching tensor for every update."""
    blocks = 1 + max(entry.layer for entry in entries.values() if entry.layer is not None)
    raise_problems(
        f"{path} does not fit this transformer of {blocks} blocks; was it trained for another model?",
        {
            "not in the transformer": [
                f"{delta.layer} ({name})" if delta.layer not in name else name
                for name, delta in deltas.items()
                if name not in entries
            ],
            "misshapen": [
                f"{delta.layer}: the file updates {delta.shape}, {name} is {entries[name].shape}"
                for name, delta in deltas.items()
                if name in entries and delta.shape != entries[name].shape
            ],
        },
    )
