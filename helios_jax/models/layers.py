"""Layers shared by the networks: dtype-aware linear layers, norms, patch embedding.

Numerics (design rule): norms, modulation, gates and softmax run in fp32; matrix products run in the
compute dtype with fp32 accumulation. With compute dtype fp32 the products request full
precision, since recent GPUs default to TF32.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.typing import Array, DType, Float, Int
from pallas_kernels.linear import Activation
from pallas_kernels.linear import linear as fused_linear

_SMALL_TABLE = 4096
"""Tables with at most this many rows compute their gradient as a matrix product."""


def matmul_precision(dtype: DType) -> jax.lax.Precision | None:
    """Full precision for fp32 products (parity), the hardware default otherwise."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def adapter_output(layer: "Linear | PatchEmbed", x: Float[Array, "*B D"], dtype: DType) -> Float[Array, "*B D2"]:
    """The term scale (x A) B that a layer's adapter adds to its output; see ``helios_jax.models.lora``."""
    a, b = layer.lora_a[...].astype(dtype), layer.lora_b[...].astype(dtype)
    precision = matmul_precision(dtype)
    fused = b.ndim == 3  # one adapter for each of the equal parts of the output
    a = a.reshape(x.shape[-1], *b.shape[:-1])
    hidden = jnp.tensordot(x.astype(dtype), a, 1, precision=precision)
    out = jnp.einsum("...pr,pro->...po" if fused else "...r,ro->...o", hidden, b, precision=precision)
    return layer.lora_scale * out.reshape(*x.shape[:-1], -1)


class Linear(nnx.Linear):
    """A linear layer that may carry a low-rank adapter."""

    lora_a: nnx.Param
    lora_b: nnx.Param
    lora_scale: float

    def __call__(self, x: Float[Array, "*B D"], activation: Activation | None = None) -> Float[Array, "*B D2"]:
        bias = None if self.bias is None else self.bias[...].astype(self.dtype)
        operands = (x.astype(self.dtype), self.kernel[...].astype(self.dtype), bias)
        if not hasattr(self, "lora_a"):
            return fused_linear(*operands, activation=activation)
        out = fused_linear(*operands) + adapter_output(self, x, self.dtype)
        return out if activation is None else jax.nn.gelu(out, approximate=True)


def linear(
    in_features: int,
    out_features: int,
    *,
    bias: bool = True,
    dtype: DType,
    param_dtype: DType | None = None,
    std: float | None = None,
    rngs: nnx.Rngs,
) -> Linear:
    """A linear layer with kernel [in, out], computing in ``dtype``; parameters in ``param_dtype`` or ``dtype``.

    Its initial kernel has standard deviation ``std``, by default 1/sqrt(in).
    """
    return Linear(
        in_features,
        out_features,
        use_bias=bias,
        dtype=dtype,
        param_dtype=param_dtype or dtype,
        precision=matmul_precision(dtype),
        kernel_init=nnx.initializers.normal(std) if std else nnx.initializers.lecun_normal(),
        rngs=rngs,
    )


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """Applies a weighted RMSNorm over the last axis; computes in fp32 and rounds once, to the dtype of ``x``."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt((x32 * x32).mean(-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class Scale(nnx.Module):
    """The weight of an RMSNorm whose statistics span ``features`` channels."""

    def __init__(self, features: int, *, param_dtype: DType) -> None:
        self.scale = nnx.Param(jnp.ones((features,), param_dtype))


class LayerNormAffine(nnx.Module):
    """Scale and bias of an affine LayerNorm, fp32."""

    def __init__(self, features: int) -> None:
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))


def lookup(table: Float[Array, "V D"], indices: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """Looks up rows of a table; the gradient of a small table is a matrix product with one-hot rows.

    XLA adds up the gradients of a row one by one, on GPUs in no fixed order. This is slow where many indices are equal,
    as for padding, and the sum differs from run to run. Tables of a large vocabulary keep XLA's gradient, because
    one-hot rows of that length would fill the memory.
    """
    return _lookup_small(table, indices) if len(table) <= _SMALL_TABLE else jnp.take(table, indices, axis=0)


@jax.custom_vjp
def _lookup_small(table: Float[Array, "V D"], indices: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    return jnp.take(table, indices, axis=0)


def _lookup_forward(table: Array, indices: Array) -> tuple[Array, tuple[Array, Array]]:
    return _lookup_small(table, indices), (table, indices)


def _lookup_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    table, indices = saved
    selected = jax.nn.one_hot(indices.reshape(-1), len(table), dtype=table.dtype)
    rows = gradient.reshape(-1, gradient.shape[-1])
    precision = matmul_precision(table.dtype)
    total = jnp.matmul(selected.T, rows, precision=precision, preferred_element_type=jnp.float32)
    return total.astype(table.dtype), None


_lookup_small.defvjp(_lookup_forward, _lookup_backward)


class PatchEmbed(nnx.Module):
    """A convolution whose kernel equals its stride, computed as one matrix product over patches.

    It may carry a low-rank adapter, whose first factor is a convolution of the same kind.

    Clips whose sides are not multiples of the patch are padded at the end by repeating the last
    frame, row or column (diffusers ``pad_for_3d_conv``).
    """

    lora_a: nnx.Param
    lora_b: nnx.Param
    lora_scale: float

    def __init__(
        self,
        patch: tuple[int, int, int],
        in_channels: int,
        dim: int,
        *,
        dtype: DType,
        param_dtype: DType | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.patch = patch
        self.dtype = dtype
        shape = (*patch, in_channels, dim)
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1, 2, 3), out_axis=4)
        self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype or dtype))
        self.bias = nnx.Param(jnp.zeros((dim,), param_dtype or dtype))

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H2 W2 D"]:
        patches = to_patches(pad_to_multiple(x, self.patch), self.patch).astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype).reshape(patches.shape[-1], -1)
        out = jnp.matmul(patches, kernel, precision=matmul_precision(self.dtype))
        out = out + self.bias[...].astype(self.dtype)
        return out + adapter_output(self, patches, self.dtype) if hasattr(self, "lora_a") else out


def pad_to_multiple(x: Float[Array, "B T H W C"], patch: tuple[int, int, int]) -> Float[Array, "B T2 H2 W2 C"]:
    """Repeats the last frame, row and column until every side is a multiple of ``patch``."""
    pads = [(0, -size % p) for size, p in zip(x.shape[1:4], patch, strict=True)]
    if not any(after for _, after in pads):
        return x
    return jnp.pad(x, [(0, 0), *pads, (0, 0)], mode="edge")


def to_patches(x: Float[Array, "B T H W C"], patch: tuple[int, int, int]) -> Float[Array, "B T2 H2 W2 values"]:
    """Splits a clip into non-overlapping patches, each flattened in (frame, row, column, channel) order."""
    b, t, h, w, c = x.shape
    pt, ph, pw = patch
    x = x.reshape(b, t // pt, pt, h // ph, ph, w // pw, pw, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t // pt, h // ph, w // pw, math.prod(patch) * c)


def from_patches(tokens: Float[Array, "B T2 H2 W2 values"], patch: tuple[int, int, int]) -> Float[Array, "B T H W C"]:
    """Inverse of ``to_patches``."""
    b, t, h, w, features = tokens.shape
    pt, ph, pw = patch
    x = tokens.reshape(b, t, h, w, pt, ph, pw, features // math.prod(patch))
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t * pt, h * ph, w * pw, -1)


def stack_layers[M: nnx.Module](make: Callable[[nnx.Rngs], M], num_layers: int, rngs: nnx.Rngs) -> M:
    """Builds ``num_layers`` equal modules as one module with parameters stacked on a leading L axis.

    To run the stack, split it once into graph definition and state, and merge one layer inside the loop's body.
    """
    return nnx.split_rngs(splits=num_layers)(nnx.vmap(make))(rngs)
