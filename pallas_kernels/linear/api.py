"""A linear layer with its bias and activation in one pass.

    y = activation(x W + b)                    sum and activation in fp32, rounded once to the dtype of x        (1)

The reference follows XLA instead and rounds after each of the three.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Implementation, ImplementationName, Op, hopper_obstacle
from pallas_kernels.linear import reference

Activation = Literal["gelu"]

_DEPTH, _COLUMNS, _ROWS = 64, 128, 8
"""What inputs, outputs and rows must be multiples of: the first two for whole slices and tiles, the last for TMA."""

_LEAST_ROWS = 256
"""With fewer rows a product is bound by reading the weights, and most of a tile of the kernel is empty."""


def linear(
    x: Float[Array, "*B D"],
    kernel: Float[Array, "D D2"],
    bias: Float[Array, " D2"] | None = None,
    *,
    activation: Activation | None = None,
    implementation: ImplementationName | None = None,
) -> Float[Array, "*B D2"]:
    """Equation (1); differentiable in all array arguments.

    Args:
        x: Rows, any leading axes.
        kernel: Weights, [in, out].
        bias: One number per output.
        activation: ``"gelu"``, in its tanh approximation.
        implementation: ``"pallas"`` (Hopper, bf16, D a multiple of 64, D2 of 128, at least 256 rows, a multiple of 8),
            ``"xla"``, or ``None`` for the first of these that can run.

    Raises:
        ValueError: Shapes do not fit together, or the activation is unknown.
        NotImplementedError: ``"pallas"`` was requested and cannot run here.
    """
    if activation not in (None, "gelu"):
        raise ValueError(f"unknown activation {activation!r}; expected 'gelu' or None")
    features, out_features = kernel.shape
    if x.shape[-1] != features:
        raise ValueError(f"x has {x.shape[-1]} channels, the kernel takes {features}")
    if bias is not None and bias.shape != (out_features,):
        raise ValueError(f"bias has shape {bias.shape}; expected ({out_features},)")
    return _OP.run(implementation, x, kernel, bias, activation=activation)


def _obstacle(x: Array, kernel: Array, bias: Array | None, *, activation: str | None) -> str | None:
    """Why the kernel cannot take these operands; ``None`` if it can."""
    rows, (features, out_features) = math.prod(x.shape[:-1]), kernel.shape
    dtypes = {operand.dtype for operand in (x, kernel, bias) if operand is not None}
    if dtypes != {jnp.dtype(jnp.bfloat16)}:
        return f"x, kernel and bias must be bfloat16, not {', '.join(sorted(map(str, dtypes)))}"
    if features % _DEPTH or out_features % _COLUMNS:
        return f"inputs must be a multiple of {_DEPTH} and outputs of {_COLUMNS}, not {features} and {out_features}"
    if rows % _ROWS or rows < _LEAST_ROWS:
        return f"there must be at least {_LEAST_ROWS} rows, a multiple of {_ROWS}, not {rows}"
    return None


def _kernel(x: Array, kernel: Array, bias: Array | None, *, activation: str | None) -> Array:
    """The layer by the kernel, with all leading axes merged into one axis of rows."""
    return _fused(activation, x.reshape(-1, x.shape[-1]), kernel, bias).reshape(*x.shape[:-1], kernel.shape[1])


def _run(x: Array, kernel: Array, bias: Array | None, activation: str | None, transposed: bool = False) -> Array:
    from pallas_kernels.linear import hopper  # imports Mosaic, which not every build of JAX contains

    return hopper.linear_hopper(x, kernel, bias, activation=activation, transposed=transposed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(activation: str | None, x: Array, kernel: Array, bias: Array | None) -> Array:
    return _run(x, kernel, bias, activation)


def _forward(
    activation: str | None, x: Array, kernel: Array, bias: Array | None
) -> tuple[Array, tuple[Array, Array, Array | None, Array | None]]:
    """The layer, and for the gradient its operands and the sum before the activation, in the dtype of x."""
    total = _run(x, kernel, bias, None)
    if activation is None:
        return total, (x, kernel, bias, None)
    return jax.nn.gelu(total, approximate=True), (x, kernel, bias, total)


def _backward(
    activation: str | None, residuals: tuple[Array, Array, Array | None, Array | None], dy: Array
) -> tuple[Array, Array, Array | None]:
    """The gradient of x from the kernel, which reads the same weights transposed; the other two from XLA.

    For frozen weights the caller drops the gradient, and XLA then does not compute it.
    """
    x, kernel, bias, total = residuals
    if activation is not None:
        _, vjp = jax.vjp(functools.partial(jax.nn.gelu, approximate=True), total)
        (dy,) = vjp(dy)
    dx = _run(dy, kernel, None, None, transposed=True) if x.shape[1] % _COLUMNS == 0 else dy @ kernel.T
    dkernel = jnp.matmul(x.T, dy, preferred_element_type=jnp.float32).astype(kernel.dtype)
    dbias = None if bias is None else dy.astype(jnp.float32).sum(0).astype(bias.dtype)
    return dx, dkernel, dbias


_fused.defvjp(_forward, _backward)


_OP = Op(
    "linear",
    {
        "pallas": Implementation(run=_kernel, operand_obstacle=_obstacle, device_obstacle=hopper_obstacle),
        "xla": Implementation(run=reference.linear),
    },
)
