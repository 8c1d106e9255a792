"""Attention of cuDNN, forward through JAX's public function and backward from the results of another forward pass.

JAX has no public name for the latter. This is the only file that uses the private one.
"""

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused
from jaxtyping import Array, Float


def attention_cudnn(
    q: Float[Array, "B S N K"], k: Float[Array, "B S2 N K"], v: Float[Array, "B S2 N K"], *, scale: float
) -> Float[Array, "B S N K"]:
    """softmax(scale q k^T) v, differentiable.

    JAX differentiates this for even lengths only; others are padded by a token, the keys' masked.
    """
    length, keys = q.shape[1], k.shape[1]
    if length % 2 == keys % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation="cudnn")
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full(q.shape[:1], keys, jnp.int32)
    out = jax.nn.dot_product_attention(q, k, v, scale=scale, key_value_seq_lengths=lengths, implementation="cudnn")
    return out[:, :length]


def attention_cudnn_gradient(
    q: Float[Array, "B S N K"],
    k: Float[Array, "B S2 N K"],
    v: Float[Array, "B S2 N K"],
    out: Float[Array, "B S N K"],
    lse: Float[Array, "B N S"],
    cotangent: Float[Array, "B S N K"],
    *,
    scale: float,
) -> tuple[Float[Array, "B S N K"], Float[Array, "B S2 N K"], Float[Array, "B S2 N K"]]:
    """Gradients of q, k and v.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        out: Result of the forward pass, of whatever implementation.
        lse: Natural logarithm of its sums of exponentials, fp32.
        cotangent: Gradient of ``out``.
        scale: Factor of the logits.
    """
    absent = jnp.zeros((0,), q.dtype)
    residuals = (q, k, v, *[absent] * 7, lse, out)
    has_bias = has_dbias = False
    layout = fused.AttentionLayout.BTNH.value
    dq, dk, dv, *_ = fused._dot_product_attention_bwd_rule(
        scale, 42, 0.0, (has_bias, has_dbias), fused.MaskType.NO_MASK, layout, None, True, False, residuals, cotangent
    )
    return dq, dk, dv
