"""Attention beside cuDNN's, timed by the host clock in turns.

Implementations take turns, a batch of calls each, so that all meet the same temperature and clock: a chip at its power
limit is some 10 % slower than a cool one. A time is the median over the turns; batches include at least 10 ms of work,
so that launches overlap.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import attention

TURNS = 15
BATCH_SECONDS = 0.01

Call = Callable[[], Any]


def seconds(calls: dict[str, Call]) -> dict[str, float]:
    """Median seconds of a call of each."""
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        repeats[name] = max(2, int(BATCH_SECONDS / _batch(call, 5)))
    times = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            times[name].append(_batch(call, repeats[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _batch(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        out = call()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / repeats


def attention_rows() -> list[dict[str, Any]]:
    """Self-attention of the three levels and cross-attention to 512 text tokens: 40 heads of 128, bf16, TFLOP/s."""
    rows = []
    for length, kv_length in ((11040, 11040), (4560, 4560), (2940, 2940), (8640, 512), (2160, 512), (540, 512)):
        # The kernel reads a stream that is kept padded to a multiple of 8; cuDNN the stream as it is.
        padded, kv_padded = -(-length // 8) * 8, -(-kv_length // 8) * 8
        keys = jax.random.split(jax.random.key(0), 3)
        q, k, v = (
            jax.random.normal(key, (1, rows, 40, 128), jnp.bfloat16)
            for key, rows in zip(keys, (padded, kv_padded, kv_padded), strict=True)
        )
        pallas = jax.jit(lambda q, k, v, n=kv_length: attention(q, k, v, kv_length=n, implementation="pallas"))
        cudnn = jax.jit(lambda q, k, v: attention(q, k, v, implementation="cudnn"))
        cut = (jnp.array(q[:, :length]), jnp.array(k[:, :kv_length]), jnp.array(v[:, :kv_length]))
        calls = {"pallas": lambda: pallas(q, k, v), "cudnn": lambda: cudnn(*cut)}  # noqa: B023
        flop = 4 * length * kv_length * 40 * 128
        figures = {name: flop / s / 1e12 for name, s in seconds(calls).items()}
        rows.append({"shape": f"{length} x {kv_length}", "unit": "TFLOP/s", **figures})
    return rows
