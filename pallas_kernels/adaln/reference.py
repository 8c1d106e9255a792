"""Gated residual sum and LayerNorm in plain JAX: the arithmetic that the kernel reproduces."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def residual_norm(
    x: Float[Array, "B S D"],
    update: Float[Array, "B S2 D"],
    *,
    gate: Float[Array, "R P D"] | None,
    scale: Float[Array, "R2 P2 D"],
    shift: Float[Array, "R3 P3 D"],
    num_history: int,
    norm_history: bool,
    eps: float,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S3 D"]]:
    """See ``pallas_kernels.adaln.residual_norm``."""
    tokens = x.shape[1]

    def row(rows: Array, count: int) -> Array:
        """The rows of the last ``count`` tokens; selected inside the pass that uses them, never materialised."""
        is_current = (jnp.arange(tokens - count, tokens) >= num_history)[:, None]
        return jnp.where(is_current, rows[:, -1:], rows[:, :1])

    covered = update.shape[1]
    tail = x[:, tokens - covered :].astype(jnp.float32)
    update = update.astype(jnp.float32)
    tail = tail + (update if gate is None else update * row(gate, covered))
    stream = jnp.concatenate([x[:, : tokens - covered], tail.astype(x.dtype)], axis=1)

    z = stream[:, 0 if norm_history else num_history :].astype(jnp.float32)
    z = z - z.mean(-1, keepdims=True)
    z = z * jax.lax.rsqrt((z * z).mean(-1, keepdims=True) + eps)
    count = z.shape[1]
    return stream, (z * row(scale, count) + row(shift, count)).astype(x.dtype)
