"""Norm, activation and gathering in plain JAX: the arithmetic that the kernel reproduces."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def norm_silu_taps(x: Float[Array, "B T H W C"], gamma: Float[Array, " C"]) -> Float[Array, "B T H W C3"]:
    """See ``pallas_kernels.norm_silu_taps.norm_silu_taps``."""
    y = norm_silu(x, gamma).astype(x.dtype)
    frames = x.shape[1]
    padded = jnp.pad(y, ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0)))
    return jnp.concatenate([padded[:, tap : tap + frames] for tap in range(3)], axis=-1)


def norm_silu(x: Float[Array, "B T H W C"], gamma: Float[Array, " C"]) -> Float[Array, "B T H W C"]:
    """Norm and activation, in fp32."""
    x = x.astype(jnp.float32)
    length = jnp.sqrt((x * x).sum(-1, keepdims=True))
    scale = x.shape[-1] ** 0.5 * gamma.astype(jnp.float32)
    return jax.nn.silu(x / jnp.maximum(length, 1e-12) * scale)
