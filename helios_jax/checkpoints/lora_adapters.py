"""LoRA files as adapters of a transformer (``helios_jax.models.lora``), beside kernels that stay as they are.

    y = x W + c (x A) B        A, B: the factors of all files side by side, rank by rank            (1)

Merging rounds W + c A B to the kernel's dtype. An update that is small against its weight is lost there: in bfloat16
an entry moves only if the update is more than 1/512 to 1/256 of it. Adapters keep all of it, at the price of two thin
products per layer.

A layer of ours holds one pair of factors for all blocks of a stack and all parts of a fused projection, where files
have a pair for each. A pair that is missing, or of lower rank, is filled up with zeros, which add nothing.
"""

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.checkpoints.components import find_component, raise_problems
from helios_jax.checkpoints.key_tables import TRANSFORMER, Entry, published_entries
from helios_jax.checkpoints.lora_argument import lora_scale
from helios_jax.checkpoints.lora_files import read_lora
from helios_jax.checkpoints.lora_merge import Change, Changes, changes_of
from helios_jax.config import TransformerConfig
from helios_jax.models.lora import AdaptableLayer, adaptable_layers, adapted_layers, attach, strip_lora
from helios_jax.models.network import ConfiguredModule
from helios_jax.parallel.mesh import parameter_sharding
from helios_jax.typing import DType, Float, Path

_Place = tuple[int | None, int | None]
"""Layer of a stack and part of a fused projection."""


def load_adapters[M: ConfiguredModule](
    transformer: M, path: Path, scale: float = 1.0, *, dtype: DType | None = None
) -> M:
    """Adds the updates of a LoRA file as adapters.

    Args:
        transformer: A transformer without adapters; it is not modified.
        path: See ``read_lora``.
        scale: Strength.
        dtype: Dtype of the factors; ``None``: the compute dtype of each layer, which gives the same outputs as fp32.

    Returns:
        A transformer that shares its other arrays with ``transformer``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The errors of ``read_lora``; the transformer has adapters; updates that it has no place for, or that
            are not of low rank.
    """
    if adapted_layers(transformer):
        raise ValueError(f"the transformer has adapters already, so those of {path} cannot be added")
    changes = changes_of(path, read_lora(path), transformer, lora_scale(scale))
    return with_adapters(transformer, [changes], path, dtype=dtype)


def check_adapters(path: Path, config: TransformerConfig) -> None:
    """Checks that ``load_adapters`` can read a file for a transformer of this configuration; loads no weights.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: See ``load_adapters``.
    """
    abstract = find_component("transformer").abstract(config, jnp.bfloat16)
    _check_rank([changes_of(path, read_lora(path), abstract, 1.0)], path)


def with_adapters[M: ConfiguredModule](
    transformer: M, files: Sequence[Changes], source: object, *, dtype: DType | None = None
) -> M:
    """The transformer with the updates of these files as adapters, in place of those that it has.

    Args:
        transformer: It is not modified; all other arrays are shared with it.
        files: The updates of each file; none of them removes all adapters.
        source: Name of the files, for errors.
        dtype: See ``load_adapters``.

    Raises:
        ValueError: An update is dense.
    """
    _check_rank(files, source)
    plain = strip_lora(transformer)
    layers = adaptable_layers(plain)
    entries = collections.defaultdict(list)
    for entry in published_entries(plain, TRANSFORMER).values():
        entries[entry.path].append(entry)
    for path in dict.fromkeys(path for changes in files for path in changes):
        layer = layers["/".join(map(str, path[:-1]))]
        of_layer = [list(changes[path]) for changes in files if path in changes]
        a, b, scale = _factors(entries[path], of_layer)
        kind = jnp.dtype(layer.dtype if dtype is None else dtype)
        a, b = (jax.device_put(factor.astype(kind), _home(layer, factor.shape)) for factor in (a, b))
        attach(layer, a, b, scale)
    return plain


def _check_rank(files: Sequence[Changes], source: object) -> None:
    dense = [change.name for changes in files for each in changes.values() for change in each if not change.delta.rank]
    raise_problems(
        f"{source}: only low-rank updates of linear layers and patch embeddings can stay separate; merge this file:",
        {"updated by dense differences": dense},
    )


def _factors(
    entries: Sequence[Entry], files: Sequence[Sequence[Change]]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], float]:
    """A and B of one layer in our layout, fp32, and their scale."""
    weights = {change.weight for changes in files for change in changes}
    # The scale is applied to the product, as in training. Different ones have to be part of B.
    scale = weights.pop() if len(weights) == 1 else None
    pairs = [{_place(change.entry): _pair(change, scale) for change in changes} for changes in files]
    ranks = [max(a.shape[-1] for a, _ in of_file.values()) for of_file in pairs]
    example_a, example_b = next(iter(pairs[0].values()))

    def side_by_side(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
        a = np.zeros((*example_a.shape[:-1], sum(ranks)), np.float32)
        b = np.zeros((sum(ranks), example_b.shape[-1]), np.float32)
        for start, of_file in zip(np.cumsum([0, *ranks]), pairs, strict=False):
            if _place(entry) in of_file:
                one, other = of_file[_place(entry)]
                a[..., start : start + one.shape[-1]], b[start : start + len(other)] = one, other
        return a, b

    filled = {_place(entry): side_by_side(entry) for entry in entries}
    stacks = sorted({layer for layer, _ in filled if layer is not None}) or [None]
    parts = sorted({part for _, part in filled if part is not None}) or [None]
    a = [_joined([filled[layer, part][0] for part in parts], axis=-2) for layer in stacks]
    b = [_joined([filled[layer, part][1] for part in parts], axis=0) for layer in stacks]
    return _joined(a, axis=0), _joined(b, axis=0), 1.0 if scale is None else scale


def _joined(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """The arrays along a new axis; a single one as it is, since a layer without a stack has no such axis."""
    return arrays[0] if len(arrays) == 1 else np.stack(arrays, axis)


def _pair(change: Change, scale: float | None) -> tuple[np.ndarray, np.ndarray]:
    """One file's A and B of a published tensor in our layout, with the weight in B unless all have this scale."""
    up, down = (np.asarray(factor, np.float32) for factor in change.delta.factors)
    b = up.reshape(len(up), -1).T
    return np.asarray(change.entry.layout.to_ours(down)), b if scale is not None else np.float32(change.weight) * b


def _place(entry: Entry) -> _Place:
    if entry.columns is None:
        return entry.layer, None
    return entry.layer, entry.columns.start // (entry.columns.stop - entry.columns.start)


def _home(layer: AdaptableLayer, shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """Where a factor lives: on the devices of its kernel, sharded like any parameter of this shape."""
    place = layer.kernel[...].sharding
    if isinstance(place, jax.sharding.NamedSharding) and isinstance(place.mesh, jax.sharding.Mesh):
        return parameter_sharding(shape, place.mesh)
    return place
