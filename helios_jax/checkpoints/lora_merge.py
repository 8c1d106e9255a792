"""Merging LoRA files into a transformer's weights.

    W <- W + sum over files of scale (alpha / rank) B A        low-rank updates; A [rank, in], B [out, rank]      (1)
    W <- W + sum over files of scale dW                        dense updates                                      (2)

A patch embedding's A is a convolution kernel [rank, in, frames, rows, columns] and its B a pointwise one. Products and
sums are computed in fp32 and each weight is rounded once, to the dtype that it is stored in. ``lora_set`` keeps what
is needed to remove a file again.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.checkpoints.components import find_component, raise_problems
from helios_jax.checkpoints.key_tables import TRANSFORMER, Entry, Layout, ParamPath, published_entries
from helios_jax.checkpoints.lora_argument import lora_scale
from helios_jax.checkpoints.lora_files import LoraDelta, read_lora
from helios_jax.checkpoints.weights import MAX_WEIGHT
from helios_jax.config import TransformerConfig
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.typing import AnyArray, Array, Float, Path


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """One update of one published tensor.

    Attributes:
        name: Published name of the tensor.
        entry: Its place in our parameters.
        delta: The update.
        weight: What the update is multiplied by: scale times alpha / rank.
    """

    name: str
    entry: Entry
    delta: LoraDelta
    weight: float


Changes = Mapping[ParamPath, Sequence[Change]]
"""The updates of every parameter that is touched."""


def check_lora(path: Path, config: TransformerConfig) -> None:
    """Checks that a LoRA file can be merged into a transformer of this configuration, before its weights are loaded.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: See ``merge_lora_file``.
    """
    changes_of(path, read_lora(path), find_component("transformer").abstract(config, jnp.bfloat16), 1.0)


def merge_lora_file[M: ConfiguredModule](
    transformer: Network[M], path: Path, scale: float = 1.0, *, donate: bool = False
) -> Network[M]:
    """Merges a LoRA file permanently into a transformer, on its device(s).

    Args:
        transformer: The transformer; its arrays stay valid, since running streams may use them.
        path: See ``read_lora``.
        scale: Strength; negative or zero as well.
        donate: Give up the transformer's arrays. The merge then needs memory for one more layer, instead of a second
            copy of every parameter that changes.

    Returns:
        The merged transformer. Parameters that the file does not touch are shared with ``transformer``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The errors of ``read_lora``; a scale that is not finite; updates of tensors that this transformer
            does not have, or has in another shape (all listed); weights beyond ``MAX_WEIGHT``, or not finite.
    """
    scale = lora_scale(scale)
    changes = changes_of(path, read_lora(path), transformer.module, scale)
    state = dict(nnx.to_flat_state(transformer.params))
    arrays = {parameter: state[parameter][...] for parameter in changes}
    return with_arrays(transformer, merged_arrays(arrays, changes, path, donate=donate))


def changes_of(path: Path, deltas: Mapping[str, LoraDelta], module: nnx.Module, scale: float) -> Changes:
    """Assigns a file's updates to the parameters of a transformer, concrete or abstract.

    Raises:
        ValueError: The transformer lacks a tensor, or has it in another shape (all listed).
    """
    entries = published_entries(module, TRANSFORMER)
    _check_fit(path, deltas, entries)
    changes: dict[ParamPath, list[Change]] = collections.defaultdict(list)
    for name, delta in deltas.items():
        change = Change(name=name, entry=entries[name], delta=delta, weight=scale * delta.weight)
        changes[entries[name].path].append(change)
    return changes


def merged_arrays(
    arrays: Mapping[ParamPath, Array],
    changes: Changes,
    source: object,
    *,
    homes: Mapping[ParamPath, jax.sharding.Sharding] | None = None,
    donate: bool = False,
) -> dict[ParamPath, Array]:
    """Adds updates to parameters; several updates of one tensor are added up before it is rounded.

    Args:
        arrays: Every parameter that is updated, without updates.
        changes: The updates.
        source: Name of their origin, for errors.
        homes: Sharding of each result; by default that of the array.
        donate: Donate the buffers of ``arrays``.

    Returns:
        The updated parameters.

    Raises:
        ValueError: A weight would not be finite, or beyond ``MAX_WEIGHT``.
    """
    merged: dict[ParamPath, Array] = {}
    sound: dict[str, Array] = {}
    for parameter, updates in changes.items():
        home = arrays[parameter].sharding if homes is None else homes[parameter]
        # Parameters in host memory are moved to the device one at a time, and back after the merge. ``_add`` donates
        # its argument, so a caller who keeps the arrays needs a copy: ``may_alias=False`` makes ``device_put`` copy
        # even if the array is on the device already.
        device = home.with_memory_kind("device")
        array = jax.device_put(arrays[parameter], device, may_alias=None if donate else False)
        for name, several in _by_tensor(updates).items():
            entry = several[0].entry
            factors = tuple(change.delta.factors for change in several)
            with np.errstate(over="ignore"):  # Overflow is detected in the sum.
                weights = tuple(np.float32(change.weight) for change in several)
            array, sound[name] = _add(array, entry.layer, factors, weights, entry.layout, entry.columns)
        merged[parameter] = jax.device_put(array, home)
    wrong = [name for name, is_sound in sound.items() if not is_sound]
    raise_problems(
        f"with {source} merged, weights would not be finite, or beyond {MAX_WEIGHT:g}; is the scale right? Tensors:",
        {"that overflow": wrong},
    )
    return merged


def with_arrays[N: Network[Any]](transformer: N, arrays: Mapping[ParamPath, Array]) -> N:
    """The transformer with some parameters replaced."""
    state = dict(nnx.to_flat_state(transformer.params))
    for parameter, array in arrays.items():
        state[parameter] = state[parameter].replace(array)
    return dataclasses.replace(transformer, params=nnx.from_flat_state(list(state.items())))


def _by_tensor(changes: Iterable[Change]) -> dict[str, list[Change]]:
    groups: dict[str, list[Change]] = collections.defaultdict(list)
    for change in changes:
        groups[change.name].append(change)
    return groups


@functools.partial(jax.jit, static_argnames=("layout", "columns"), donate_argnames="parameter")
def _add(
    parameter: Array,
    layer: int | Array | None,
    factors: tuple[tuple[AnyArray, ...], ...],
    weights: tuple[AnyArray, ...],
    layout: Layout,
    columns: slice | None = None,
) -> tuple[Array, Array]:
    """Adds updates to (a layer, columns of) a parameter in place; also returns whether the result can be a weight."""
    # One call per published tensor, so only one tensor's fp32 product exists at a time. A stack's layer is
    # traced: all layers of a stack share a program.
    place = (..., columns or slice(None)) if layer is None else (layer, ..., columns or slice(None))
    old = parameter[place]
    total = old.astype(jnp.float32)
    for update, weight in zip(factors, weights, strict=True):
        total = total + weight * layout.to_ours(_product(*update))
    new = total.astype(old.dtype)
    return parameter.at[place].set(new), (jnp.abs(new) <= MAX_WEIGHT).all()


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
