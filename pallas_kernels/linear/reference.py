"""The linear layer in plain JAX: the arithmetic that the kernel reproduces."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def linear(
    x: Float[Array, "*B D"], kernel: Float[Array, "D D2"], bias: Float[Array, " D2"] | None, *, activation: str | None
) -> Float[Array, "*B D2"]:
    """activation(x W + b), rounded after each operation as XLA does; fp32 operands are multiplied in full fp32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    y = jnp.matmul(x, kernel, precision=precision)
    if bias is not None:
        y = y + bias
    return y if activation is None else jax.nn.gelu(y, approximate=True)
