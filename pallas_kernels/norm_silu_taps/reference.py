"""Norm, activation and gathering in plain JAX: the arithmetic that the kernel reproduces."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def norm_silu_taps(x: Float[Array, "B T H W C"], gamma: Float[Array, " C"]) -> Float[Array, "B T H W C3"]:
    """See ``pallas_kernels.norm_silu_taps.norm_silu_taps``."""
    x32 = x.astype(jnp.float32)
    length = jnp.sqrt((x32 * x32).sum(-1, keepdims=True))
    scale = x.shape[-1] ** 0.5 * gamma.astype(jnp.float32)
    y = jax.nn.silu(x32 / jnp.maximum(length, 1e-12) * scale).astype(x.dtype)
    frames = x.shape[1]
    padded = jnp.pad(y, ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0)))
    return jnp.concatenate([padded[:, tap : tap + frames] for tap in range(3)], axis=-1)
