"""Softmax attention by its definition, in fp32; every implementation is tested against it."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attention_reference(
    q: Float[Array, "B S N K"],
    k: Float[Array, "B S2 N K"],
    v: Float[Array, "B S2 N K"],
    *,
    scale: float | None = None,
    kv_length: int | None = None,
    last_key_count: int = 1,
) -> tuple[Float[Array, "B S N K"], Float[Array, "B N S"]]:
    """Attention over the first ``kv_length`` keys and the natural log of the sum of exponentials, both fp32.

    The last of these keys counts ``last_key_count`` times: exp(logit) occurs that many times in the sum.
    """
    q, k, v = (x.astype(jnp.float32) for x in (q, k[:, :kv_length], v[:, :kv_length]))
    logits = jnp.einsum("bsnk,btnk->bnst", q, k, precision="highest")
    logits *= q.shape[-1] ** -0.5 if scale is None else scale
    logits = logits.at[..., -1].add(math.log(last_key_count))
    out = jnp.einsum("bnst,btnk->bsnk", jax.nn.softmax(logits), v, precision="highest")
    return out, jax.nn.logsumexp(logits, axis=-1)
