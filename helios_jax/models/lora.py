"""Low-rank adapters (LoRA, arXiv 2106.09685) on linear layers and patch embeddings.

    y = x W + bias + (alpha / r) (x A) B          A ~ N(0, 1/r^2), B = 0 at the start            (1)

An adapter is three attributes of its layer, so it is stacked, scanned, sharded and saved like any parameter:

    lora_a      [in, r]; a patch embedding's is a convolution kernel [frames, rows, columns, in, r]
    lora_b      [r, out]; a pointwise convolution for a patch embedding
    lora_scale  alpha / r, static

Layers that fuse several projections carry an adapter for each: ``lora_a`` [in, parts, r] and ``lora_b``
[parts, r, out / parts], since published files have one pair for each of to_q, to_k and to_v. Stacked layers have
a leading L axis on both. Adapters are stored in fp32 and applied in the layer's dtype.
"""

import functools
import math
import re
import zlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.models.layers import Linear, PatchEmbed
from helios_jax.typing import Array, DType, Float, Key

FUSED = {"to_qkv": 3}
"""Layers that fuse several projections side by side, and how many."""

_ATTRIBUTES = ("lora_a", "lora_b", "lora_scale")

AdaptableLayer = Linear | PatchEmbed


def add_lora[M: nnx.Module](
    module: M,
    *,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = (".*",),
    excludes: Sequence[str] = (),
    key: Key[Array, ""],
) -> M:
    """Adds adapters to layers; the output does not change until they are trained.

    Args:
        module: The network; it is not modified.
        rank: Rank r of every adapter.
        alpha: Scale of (1) times r; ``rank`` by default.
        targets: Patterns of layer paths such as "blocks/attn1/to_qkv", each matched as a whole.
        excludes: Patterns of layers to leave out.
        key: Source of the initial A. A layer's draw depends only on its path.

    Returns:
        A network that shares its arrays with ``module``.

    Raises:
        ValueError: A target that matches no layer, a rank below 1, or a layer that has an adapter already.
    """
    if rank < 1:
        raise ValueError(f"the rank of an adapter must be at least 1, got {rank}")
    module = nnx.merge(*nnx.split(module))
    layers = dict(_layers(module))
    for pattern in targets:
        if not any(re.fullmatch(pattern, path) for path in layers):
            raise ValueError(f"no layer matches the LoRA target {pattern!r}; layers are {', '.join(layers)}")
    chosen = {path: layer for path, layer in layers.items() if _matches(path, targets) and not _matches(path, excludes)}
    for path, layer in chosen.items():
        if hasattr(layer, "lora_a"):
            raise ValueError(
                f"{path} has an adapter already, for example one that training starts from; leave the layer out "
                "(excludes), leave out lora altogether to train the adapters that are there, or merge_lora them first"
            )

    @jax.jit
    def draw(key: Key[Array, ""]) -> dict[str, tuple[Array, Array]]:
        return {path: _initial_factors(layer, path, rank, key) for path, layer in chosen.items()}

    for path, (a, b) in draw(key).items():
        attach(chosen[path], a, b, (rank if alpha is None else alpha) / rank)
    return module


def attach(layer: AdaptableLayer, a: Float[Array, "..."], b: Float[Array, "..."], scale: float) -> None:
    """Adds an adapter to a layer, in place; the factors are laid out as in the module's docstring."""
    layer.lora_a, layer.lora_b, layer.lora_scale = nnx.Param(a), nnx.Param(b), scale


def merge_lora[M: nnx.Module](module: M) -> M:
    """Folds every adapter into its kernel, W <- W + (alpha / r) A B, and removes it.

    Products are computed in fp32, one layer of a stack at a time, and each kernel is rounded once.

    Returns:
        A network that shares its other arrays with ``module``, which is not modified.
    """
    merged = nnx.merge(*nnx.split(module))
    for _, layer in _layers(merged):
        if hasattr(layer, "lora_a"):
            layer.kernel = nnx.Param(merged_kernel(layer))
    return strip_lora(merged)


def merged_kernel(
    layer: AdaptableLayer,
    index: int | None = None,
    *,
    kernel: Float[Array, "*shape"] | None = None,
    dtype: DType | None = None,
) -> Float[Array, "*shape"]:
    """The kernel of a layer with its adapter merged in, rounded once; the layer is not modified.

    Args:
        layer: A layer with an adapter.
        index: One layer of a stack, so that no second copy of the stack is needed; ``None``: all of it.
        kernel: The kernel, of this index, to merge into; ``None``: that of the layer.
        dtype: Dtype of the result; ``None``: that of the layer's kernel.
    """
    own, a, b = (parameter[...] for parameter in (layer.kernel, layer.lora_a, layer.lora_b))
    if index is not None:
        a, b = (jnp.asarray(stack[index]) for stack in (a, b))
    if kernel is None:
        kernel = own if index is None else jnp.asarray(own[index])
    stacked = kernel.ndim > _kernel_ndim(layer)
    return _merge(kernel, a, b, layer.lora_scale, stacked, jnp.dtype(own.dtype if dtype is None else dtype))


def adapter_kernel(layer: AdaptableLayer, index: int | None = None) -> Float[Array, "*shape"]:
    """What the adapter of a layer adds to its kernel, in fp32; ``index`` is one layer of a stack."""
    a, b = (parameter[...] for parameter in (layer.lora_a, layer.lora_b))
    if index is not None:
        a, b = a[index], b[index]
    return layer.lora_scale * _product(jnp.asarray(a), jnp.asarray(b))


def strip_lora[M: nnx.Module](module: M) -> M:
    """The network without its adapters; arrays are shared with ``module``, which is not modified."""
    module = nnx.merge(*nnx.split(module))
    for _, layer in _layers(module):
        if hasattr(layer, "lora_a"):
            for name in _ATTRIBUTES:
                delattr(layer, name)
    return module


def adaptable_layers(module: nnx.Module) -> dict[str, AdaptableLayer]:
    """The layers that can carry an adapter, by path."""
    return dict(_layers(module))


def adapted_layers(module: nnx.Module) -> dict[str, AdaptableLayer]:
    """The layers that carry an adapter, by path."""
    return {path: layer for path, layer in _layers(module) if hasattr(layer, "lora_a")}


def _layers(module: nnx.Module) -> Iterator[tuple[str, AdaptableLayer]]:
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, AdaptableLayer):
            yield "/".join(map(str, path)), layer


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def _kernel_ndim(layer: AdaptableLayer) -> int:
    """Number of axes of one layer's kernel, without the stack's axis."""
    return 2 if isinstance(layer, Linear) else 5


def _initial_factors(layer: AdaptableLayer, path: str, rank: int, key: Key[Array, ""]) -> tuple[Array, Array]:
    *fan_in, out = layer.kernel.shape
    lead = fan_in[: layer.kernel.ndim - _kernel_ndim(layer)]
    parts = [FUSED[name]] if (name := path.rpartition("/")[2]) in FUSED else []
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    a = jax.random.normal(key, (*fan_in, *parts, rank)) / rank
    return a, jnp.zeros((*lead, *parts, rank, out // math.prod(parts)))


def _product(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """A B of one layer, with the shape of its kernel."""
    fused = b.ndim == 3
    lead = a.shape[: -2 if fused else -1]
    terms = "ipr,pro->ipo" if fused else "ir,ro->io"
    product = jnp.einsum(terms, a.reshape(-1, *b.shape[:-1]), b, precision=jax.lax.Precision.HIGHEST)
    return product.reshape(*lead, -1)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _merge(
    kernel: Float[Array, "*shape"],
    a: Float[Array, "..."],
    b: Float[Array, "..."],
    scale: float,
    stacked: bool,
    dtype: DType,
) -> Float[Array, "*shape"]:
    def fold(factors: tuple[Array, Array, Array]) -> Array:
        kernel, a, b = factors
        return (kernel.astype(jnp.float32) + scale * _product(a, b)).astype(dtype)

    return jax.lax.map(fold, (kernel, a, b)) if stacked else fold((kernel, a, b))
