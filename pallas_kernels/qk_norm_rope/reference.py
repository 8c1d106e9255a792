"""RMSNorm over all heads and rotary embedding in plain JAX: the arithmetic that the kernel reproduces."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def qk_norm_rope(
    q: Float[Array, "B S D2"],
    k: Float[Array, "B S D3"],
    q_scale: Float[Array, " D"],
    k_scale: Float[Array, " D"],
    table: Float[Array, "*samples S 2 K2"],
    *,
    q_start: int,
    k_start: int,
    eps: float,
) -> tuple[Float[Array, "B S N K"], Float[Array, "B S N K"]]:
    """Norm and rotation; ``pallas_kernels.qk_norm_rope.qk_norm_rope`` explains the arguments."""

    def norm_rope(x: Array, scale: Array, start: int) -> Array:
        x32 = x[..., start : start + scale.size].astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt((x32 * x32).mean(-1, keepdims=True) + eps)
        normed = (normed * scale.astype(jnp.float32)).astype(x.dtype)

        pairs = normed.astype(jnp.float32).reshape(*x.shape[:2], -1, table.shape[-1], 2)
        even, odd = pairs[..., 0], pairs[..., 1]
        cos, sin = table[..., None, 0, :], table[..., None, 1, :]
        rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
        return rotated.reshape(*x.shape[:2], -1, 2 * table.shape[-1]).astype(x.dtype)

    return norm_rope(q, q_scale, q_start), norm_rope(k, k_scale, k_start)
