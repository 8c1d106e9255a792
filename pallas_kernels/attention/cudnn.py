"""Attention by cuDNN: forward by JAX's public function, backward from the results of another forward pass.

JAX has no public name for the latter. This is the only file that uses the private one.
"""

import functools
import inspect
from typing import cast

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused
from jaxtyping import Array, Float


def attention_cudnn(
    q: Float[Array, "B S N K"], k: Float[Array, "B S2 N K"], v: Float[Array, "B S2 N K"], *, scale: float
) -> Float[Array, "B S N K"]:
    """softmax(scale q k^T) v, differentiable.

    JAX differentiates its function for even lengths only. Other lengths are padded by one token, which is masked among
    the keys.
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
        out: Result of the forward pass, by any implementation.
        lse: Natural logarithm of its sums of exponentials, fp32.
        cotangent: Gradient of ``out``.
        scale: Factor of the logits.

    Raises:
        NotImplementedError: This version of JAX has changed its private function.
    """
    _require_known_rule()
    absent = jnp.zeros((0,), q.dtype)
    no_bias = no_lengths = no_offsets = no_page_tables = absent
    gradients = fused._dot_product_attention_bwd_rule(
        scale=scale,
        seed=42,  # as in the forward pass of JAX; without dropout it is not used
        dropout_rate=0.0,
        variadic_args=(False, False),  # neither a bias nor a gradient of one
        mask_type=fused.MaskType.NO_MASK,
        layout=fused.AttentionLayout.BTNH.value,
        sliding_window_length=None,
        is_training=True,
        return_residual=False,
        # In JAX's order: bias, lengths and offsets of queries and keys, page tables of keys and values.
        res=(q, k, v, no_bias, *2 * [no_lengths], *2 * [no_offsets], *2 * [no_page_tables], lse, out),
        grad_output=cotangent,
    )
    return cast(tuple[Array, Array, Array], gradients[:3])  # only those of further operands can be None


@functools.cache
def _require_known_rule() -> None:
    """Checks that JAX's private function still has the parameters that it is called with.

    A change of JAX would otherwise show as an error in JAX's own code or, if residuals are reordered, as wrong numbers.
    """
    found = tuple(inspect.signature(fused._dot_product_attention_bwd_rule).parameters)
    if found != _PARAMETERS:
        raise NotImplementedError(
            f"the gradient of attention calls a private function of JAX whose parameters are {found} in JAX "
            f"{jax.__version__}; expected {_PARAMETERS}, as in JAX 0.11.2. implementation='xla' has a gradient anywhere"
        )


_PARAMETERS = (
    "scale",
    "seed",
    "dropout_rate",
    "variadic_args",
    "mask_type",
    "layout",
    "sliding_window_length",
    "is_training",
    "return_residual",
    "res",
    "grad_output",
)
