"""Softmax attention in plain JAX, for devices and types that no kernel covers."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BLOCK_LOGITS = 2**31
"""Logits (elements) that may exist at once; longer sequences are computed in blocks of queries."""


def attention_xla(
    q: Float[Array, "B S N K"],
    k: Float[Array, "B S2 N K"],
    v: Float[Array, "B S2 N K"],
    *,
    scale: float,
    last_key_count: int = 1,
) -> tuple[Float[Array, "B S N K"], Float[Array, "B N S"]]:
    """Attention with logits, softmax and log-sum-exp in fp32, and products in the dtype of the operands."""
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    last_key = jnp.arange(k.shape[1]) == k.shape[1] - 1

    def attend(q: Array) -> tuple[Array, Array]:
        logits = jnp.einsum("bsnk,btnk->bnst", q, k, precision=precision, preferred_element_type=jnp.float32) * scale
        if last_key_count > 1:
            logits += jnp.where(last_key, math.log(last_key_count), 0.0)
        lse = jax.nn.logsumexp(logits, axis=-1)
        weights = jnp.exp(logits - lse[..., None]).astype(v.dtype)
        return jnp.einsum("bnst,btnk->bsnk", weights, v, precision=precision), lse

    batch, length, heads, head_dim = q.shape
    blocks = -(-batch * heads * length * k.shape[1] // _BLOCK_LOGITS)
    if blocks <= 1:
        return attend(q)
    size = -(-length // blocks)
    padded = jnp.pad(q, ((0, 0), (0, blocks * size - length), (0, 0), (0, 0)))
    out, lse = jax.lax.map(attend, padded.reshape(batch, blocks, size, heads, head_dim).swapaxes(0, 1))
    out = out.swapaxes(0, 1).reshape(batch, -1, heads, head_dim)
    lse = jnp.moveaxis(lse, 0, 2).reshape(batch, heads, -1)
    return out[:, :length], lse[:, :, :length]
