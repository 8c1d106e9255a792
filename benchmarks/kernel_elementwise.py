"""Times the fused element-wise passes of a block and of the VAE, and XLA's own fusion of them, on the device.

Times are those of the device (CUPTI, sum over the kernels of a call, median of 12 calls): a call takes less time than
the host needs to launch it. Every call moves several times the size of the L2 cache, and inputs are random. The last
columns are the bytes that must move divided by the kernel's time, and the same for a plain copy of as many bytes.
"""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.mosaic.gpu import profiler

from pallas_kernels.adaln import residual_norm
from pallas_kernels.norm_silu_pairs import norm_silu_pairs
from pallas_kernels.qk_norm_rope import qk_norm_rope

DIM, HEAD_DIM, HISTORY = 5120, 128, 2400
LEVELS = (2940, 4560, 11040)
DECODER_LEVELS = ((33, 384, 640, 96), (33, 192, 320, 192), (17, 96, 160, 384), (9, 48, 80, 384))
CALLS = 12


def microseconds(call: Callable, *operands: Any) -> float:
    """Device time of a call."""
    _, times = profiler.measure(jax.jit(call), iterations=CALLS)(*operands)
    assert times is not None
    return 1e3 * statistics.median(times)


def normal(seed: int, *shape: int, dtype: str = "bfloat16") -> jax.Array:
    """Random operand."""
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def row(shape: str, moved: int, call: Callable, *operands: Any) -> dict[str, Any]:
    """One line of a table; ``moved`` counts bf16 numbers read and written."""
    times = {name: microseconds(lambda *x, name=name: call(*x, name), *operands) for name in ("pallas", "xla")}
    copy = microseconds(lambda x: x + 1, normal(9, moved // 2))
    rates = {"GB/s": 2 * moved / times["pallas"] / 1e3, "copy GB/s": 2 * moved / copy / 1e3}
    return {"shape": shape, "unit": "us", **times, **rates}


def adaln_rows() -> list[dict[str, Any]]:
    """The residual sum and norm before self-attention, cross-attention and FFN."""
    gate, scale, shift = (normal(i, 1, 2, DIM, dtype="float32") for i in range(3))
    rows = []
    for tokens in LEVELS:
        current = tokens - HISTORY
        x, update = normal(3, 1, tokens, DIM), normal(4, 1, tokens, DIM)
        for name, updated, normed in (
            ("self-attention", tokens, tokens),
            ("cross-attention", tokens, current),
            ("ffn", current, tokens),
        ):

            def call(x, update, implementation, updated=updated, normed=normed, tokens=tokens):
                rows = 2 if normed == tokens else 1  # the norm before cross-attention has a weight and a bias
                return residual_norm(
                    x,
                    update,
                    gate=gate if updated == tokens else None,
                    scale=scale[:, :rows],
                    shift=shift[:, :rows],
                    num_history=HISTORY,
                    norm_history=normed == tokens,
                    implementation=implementation,
                )

            moved = (2 * tokens + updated + normed) * DIM
            rows.append(row(f"{name} {tokens}", moved, call, x, jnp.array(update[:, :updated])))
    return rows


def qk_norm_rope_rows() -> list[dict[str, Any]]:
    """Norm and rotation of queries and keys, as two arrays and out of one fused projection."""
    q_scale, k_scale = normal(0, DIM), normal(1, DIM)
    rows = []
    for tokens in LEVELS:
        q, k = normal(2, 1, tokens, DIM), normal(3, 1, tokens, DIM)
        table = normal(4, tokens, 2, HEAD_DIM // 2, dtype="float32")

        def separate(q, k, table, implementation):
            return qk_norm_rope(q, k, q_scale, k_scale, table, implementation=implementation)

        def fused(qkv, table, implementation):
            return qk_norm_rope(qkv, qkv, q_scale, k_scale, table, k_start=DIM, implementation=implementation)

        rows.append(row(f"separate {tokens}", 4 * tokens * DIM, separate, q, k, table))
        rows.append(row(f"fused {tokens}", 4 * tokens * DIM, fused, jnp.concatenate([q, k, k], axis=-1), table))
    return rows


def norm_silu_pairs_rows() -> list[dict[str, Any]]:
    """Norm, activation and sums of frames of the VAE's decoder, 33 frames of 384 x 640."""

    def call(x, gamma, implementation):
        return norm_silu_pairs(x, gamma, implementation=implementation)

    rows = []
    for shape in DECODER_LEVELS:
        x, gamma = normal(0, 1, *shape), normal(1, shape[-1])
        written = 4 * (shape[0] + 1) // 2 * (x.size // shape[0])
        rows.append(row("x".join(map(str, shape)), x.size + written, call, x, gamma))
    return rows
