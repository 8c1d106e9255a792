"""Times the attention kernel, cuDNN's and, if it is installed, tokamax's by the host clock, in turns.

Implementations take turns, a batch of calls each, so that all meet the same temperature and clock: a chip at its power
limit is some 10 % slower than a cool one. So each has two columns: in "steady" batches follow each other, in "burst"
the chip rests before each batch. A time is the median over the turns; batches include at least 10 ms of work, so that
launches overlap.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import attention

TURNS = 15
BATCH_SECONDS = 0.01
REST_SECONDS = 0.1

Call = Callable[[], Any]


def seconds(calls: dict[str, Call], rest: float = 0.0) -> dict[str, float]:
    """Median seconds per call of each implementation, with a rest before each batch."""
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        repeats[name] = max(2, int(BATCH_SECONDS / _batch(call, 5)))
    times = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            time.sleep(rest)
            times[name].append(_batch(call, repeats[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _batch(call: Call, repeats: int) -> float:
    out = None
    start = time.perf_counter()
    for _ in range(repeats):
        out = call()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / repeats


def attention_rows() -> list[dict[str, Any]]:
    """Self-attention of the three levels, and cross-attention to 512 and 128 text tokens: 40 heads of 128, bf16."""
    return [
        _row(*lengths)
        for lengths in (
            *((length, length) for length in (11040, 4560, 2940)),
            *((length, keys) for keys in (512, 128) for length in (8640, 2160, 540)),
        )
    ]


def _row(length: int, kv_length: int) -> dict[str, Any]:
    """TFLOP/s of one shape."""
    # The kernel reads a stream that is kept padded to a multiple of 8; the others the stream as it is.
    padded, kv_padded = -(-length // 8) * 8, -(-kv_length // 8) * 8
    q, k, v = (
        jax.random.normal(key, (1, rows, 40, 128), jnp.bfloat16)
        for key, rows in zip(jax.random.split(jax.random.key(0), 3), (padded, kv_padded, kv_padded), strict=True)
    )
    cut = (jnp.array(q[:, :length]), jnp.array(k[:, :kv_length]), jnp.array(v[:, :kv_length]))
    pallas = jax.jit(lambda q, k, v: attention(q, k, v, kv_length=kv_length, implementation="pallas"))
    cudnn = jax.jit(lambda q, k, v: attention(q, k, v, implementation="cudnn"))
    calls = {"pallas": lambda: pallas(q, k, v), "cudnn": lambda: cudnn(*cut)}
    if importlib.util.find_spec("tokamax"):
        import tokamax

        other = jax.jit(lambda q, k, v: tokamax.dot_product_attention(q, k, v, implementation="mosaic"))
        calls["tokamax"] = lambda: other(*cut)
    flop = 4 * length * kv_length * 40 * 128
    figures = {
        f"{name} {how}": flop / taken / 1e12
        for how, rest in (("steady", 0.0), ("burst", REST_SECONDS))
        for name, taken in seconds(calls, rest).items()
    }
    return {"shape": f"{length} x {kv_length}", "unit": "TFLOP/s", **figures}
