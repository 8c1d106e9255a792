"""Times the linear kernel and XLA's linear layer by the host clock, in turns.

XLA by default searches among Triton's kernels and cuBLAS', and may leave bias and activation to separate passes;
*cublas* is XLA without Triton, which takes cuBLASLt with bias and activation in its epilogue. Inside a scan over
stacked layers both also copy each layer's weights, which these figures leave out.
"""

import functools
from typing import Any, Literal

import jax
from kernel_attention import Call, seconds

from pallas_kernels.linear import linear

LEVELS = (11040, 4560, 2944)
LAYERS: dict[str, tuple[int, int, Literal["gelu"] | None]] = {
    "qkv": (5120, 15360, None),
    "ffn in, gelu": (5120, 13824, "gelu"),
    "ffn out": (13824, 5120, None),
    "attention out": (5120, 5120, None),
}
"""Inputs, outputs and activation of a block's layers."""

IMPLEMENTATIONS: dict[str, tuple[Literal["pallas", "xla"], dict[str, bool]]] = {
    "pallas": ("pallas", {}),
    "cublas": ("xla", {"xla_gpu_enable_triton_gemm": False}),
    "xla": ("xla", {}),
}
"""Implementation and compiler options."""


def layer_calls(tokens: int, features: int, out_features: int, activation: Literal["gelu"] | None) -> dict[str, Call]:
    """A call of one layer for each implementation, on the same random operands."""
    shapes = ((tokens, features), (features, out_features), (out_features,))
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, bias = (jax.random.normal(key, shape, "bfloat16") for key, shape in zip(keys, shapes, strict=True))
    operands = (x, kernel * features**-0.5, bias)
    calls: dict[str, Call] = {}
    for name, (implementation, options) in IMPLEMENTATIONS.items():
        layer = functools.partial(linear, activation=activation, implementation=implementation)
        calls[name] = functools.partial(jax.jit(layer, compiler_options=options), *operands)
    return calls


def linear_rows() -> list[dict[str, Any]]:
    """The layers of a block at the three levels, bf16 with bias, TFLOP/s."""
    rows = []
    for tokens in LEVELS:
        for name, (features, out_features, activation) in LAYERS.items():
            times = seconds(layer_calls(tokens, features, out_features, activation))
            flop = 2 * tokens * features * out_features
            figures = {implementation: flop / s / 1e12 for implementation, s in times.items()}
            rows.append({"shape": f"{name} {tokens}", "unit": "TFLOP/s", **figures})
    return rows
