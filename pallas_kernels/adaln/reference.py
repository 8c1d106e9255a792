"""Gated residual sum and LayerNorm in plain JAX: the arithmetic that the kernel reproduces."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rows_of(rows: Float[Array, "B P D"], tokens: range, num_history: int) -> Float[Array, "B S D"]:
    """The row of each token; selected inside the pass that uses them, never materialised."""
    is_current = (jnp.arange(tokens.start, tokens.stop) >= num_history)[:, None]
    return jnp.where(is_current, rows[:, -1:], rows[:, :1])


def residual_sum(
    x: Float[Array, "B S D"], update: Float[Array, "B S2 D"], gate: Float[Array, "R P D"] | None, *, num_history: int
) -> Float[Array, "B S D"]:
    """The residual stream with the gated update, the first result of ``pallas_kernels.adaln.residual_norm``."""
    tokens, first = x.shape[1], x.shape[1] - update.shape[1]
    change = update.astype(jnp.float32)
    if gate is not None:
        change = change * rows_of(gate, range(first, tokens), num_history)
    tail = x[:, first:].astype(jnp.float32) + change
    return jnp.concatenate([x[:, :first], tail.astype(x.dtype)], axis=1)


def residual_norm(
    x: Float[Array, "B S D"],
    update: Float[Array, "B S2 D"] | None,
    gate: Float[Array, "R P D"] | None,
    scale: Float[Array, "R2 P2 D"],
    shift: Float[Array, "R3 P3 D"],
    *,
    num_history: int,
    norm_history: bool,
    eps: float,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S3 D"]]:
    """The residual stream and its norm; ``pallas_kernels.adaln.residual_norm`` explains the arguments."""
    stream = x if update is None else residual_sum(x, update, gate, num_history=num_history)
    tokens = range(0 if norm_history else num_history, x.shape[1])
    z = stream[:, tokens.start :].astype(jnp.float32)
    z = z - z.mean(-1, keepdims=True)
    z = z * jax.lax.rsqrt((z * z).mean(-1, keepdims=True) + eps)
    normed = z * rows_of(scale, tokens, num_history) + rows_of(shift, tokens, num_history)
    return stream, normed.astype(x.dtype)
