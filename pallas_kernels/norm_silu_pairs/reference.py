"""Norm, activation and sums of frames in plain JAX: the arithmetic that the kernel reproduces."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_Sum = Float[Array, "B pairs H W C"]
Sums = tuple[_Sum, _Sum, _Sum, _Sum]


def norm_silu_pairs(x: Float[Array, "B T H W C"], gamma: Float[Array, " C"]) -> Sums:
    """The four sums of each pair of frames, as ``norm_silu_pairs.api`` defines them."""
    y = _norm_silu(x, gamma)
    frames = x.shape[1]
    y = jnp.pad(y, ((0, 0), (2, frames % 2), (0, 0), (0, 0), (0, 0)))
    pairs = (frames + 1) // 2
    y0, y1, y2, y3 = (y[:, start : start + 2 * pairs : 2] for start in range(4))
    first, second, third, fourth = (d.astype(x.dtype) for d in (y0 - y2, y1 + y2, y2 - y1, y1 - y3))
    return first, second, third, fourth


def _norm_silu(x: Float[Array, "B T H W C"], gamma: Float[Array, " C"]) -> Float[Array, "B T H W C"]:
    """Norm and activation, in fp32."""
    x = x.astype(jnp.float32)
    length = jnp.sqrt((x * x).sum(-1, keepdims=True))
    scale = x.shape[-1] ** 0.5 * gamma.astype(jnp.float32)
    return jax.nn.silu(x / jnp.maximum(length, 1e-12) * scale)
