"""Speed of each kernel beside the alternatives, at the shapes of the 14B model.

    python benchmarks/kernels.py --op=attention --out=kernels.json

One table per op: a row per shape, a column per implementation. Inputs are random normal numbers, never constants.
Implementations are timed in turns, a batch of calls each, so that all meet the same temperature and clock: a chip at
its power limit is some 10 % slower than a cool one. A time is the median over the turns, batches include at least 10 ms
of work, so that launches overlap.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app
from absl.flags import argparse_flags

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


OPS: dict[str, Callable[[], list[dict[str, Any]]]] = {"attention": attention_rows}


def show(op: str, rows: list[dict[str, Any]]) -> None:
    """Prints a table."""
    names = [name for name in rows[0] if name not in ("shape", "unit")]
    print(f"\n{op}, {rows[0]['unit']}")
    print(f"{'shape':24s}" + "".join(f"{name:>12s}" for name in names))
    for row in rows:
        print(f"{row['shape']:24s}" + "".join(f"{row[name]:12.1f}" for name in names), flush=True)


def main(args: argparse.Namespace) -> None:
    """Runs the chosen ops."""
    report = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for op in args.op:
        report[op] = OPS[op]()
        show(op, report[op])
    args.out.write_text(json.dumps(report, indent=1) + "\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse_flags.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append", choices=sorted(OPS), help="may be repeated; all by default")
    parser.add_argument("--out", type=Path, default=Path("kernels.json"))
    args = parser.parse_args(argv[1:])
    args.op = args.op or sorted(OPS)
    return args


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
