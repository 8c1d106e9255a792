"""Softmax attention behind one function; faster implementations are chosen here and nowhere else."""

from typing import Literal

import jax
import jax.numpy as jnp

from helios_jax.models.layers import matmul_precision
from helios_jax.typing import Array, Float

Implementation = Literal["cudnn", "xla"]

_BLOCK_ELEMENTS = 2**31
"""Logits (elements) above which the XLA path works on blocks of queries."""


def attention(
    q: Float[Array, "B S N K"],
    k: Float[Array, "B S2 N K"],
    v: Float[Array, "B S2 N K"],
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "B S N K"]:
    """Full (unmasked) softmax attention with scale 1/sqrt(K).

    Args:
        q: Queries.
        k: Keys.
        v: Values, in the dtype of ``q``.
        implementation: ``"cudnn"`` (fused, GPU, 16-bit types), ``"xla"``, or ``None`` for the best that
            the default backend offers.

    Raises:
        ValueError: An unknown implementation is asked for.
    """
    if implementation is None:
        implementation = "cudnn" if _cudnn_supports(q) else "xla"
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if implementation == "xla":
        return _xla_attention(q, k, v)
    raise ValueError(f"unknown attention implementation {implementation!r}; expected 'cudnn', 'xla' or None")


def _cudnn_supports(q: Array) -> bool:
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return fits and jax.default_backend() == "gpu"


def _xla_attention(q: Array, k: Array, v: Array) -> Array:
    """Logits and softmax in fp32. Long sequences go block by block, so that logits stay bounded."""
    precision = matmul_precision(q.dtype)

    def attend(q: Array) -> Array:
        scale = q.shape[-1] ** -0.5
        logits = jnp.einsum("bsnk,btnk->bnst", q, k, precision=precision, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * scale, axis=-1).astype(v.dtype)
        return jnp.einsum("bnst,btnk->bsnk", weights, v, precision=precision)

    batch, length, heads, _ = q.shape
    blocks = -(-batch * heads * length * k.shape[1] // _BLOCK_ELEMENTS)
    if blocks == 1:
        return attend(q)
    size = -(-length // blocks)
    padded = jnp.pad(q, ((0, 0), (0, blocks * size - length), (0, 0), (0, 0)))
    stacked = padded.reshape(batch, blocks, size, heads, -1).swapaxes(0, 1)
    out = jax.lax.map(attend, stacked)
    return out.swapaxes(0, 1).reshape(batch, blocks * size, heads, -1)[:, :length]
