"""Compares the speed of each kernel with the alternatives, at the shapes of the 14B model and its VAE.

    python benchmarks/kernels.py --op=attention --out=kernels.json

One table per op: a row per shape, a column per implementation. Inputs are random normal numbers, never constants.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app
from absl.flags import argparse_flags
from kernel_attention import attention_rows
from kernel_elementwise import adaln_rows, norm_silu_pairs_rows, qk_norm_rope_rows
from kernel_linear import linear_rows
from provenance import provenance

OPS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "attention": attention_rows,
    "adaln": adaln_rows,
    "qk_norm_rope": qk_norm_rope_rows,
    "linear": linear_rows,
    "norm_silu_pairs": norm_silu_pairs_rows,
}


def show(op: str, rows: list[dict[str, Any]]) -> None:
    """Prints a table."""
    names = [name for name in rows[0] if name not in ("shape", "unit")]
    print(f"\n{op}, {rows[0]['unit']}")
    print(f"{'shape':24s}" + "".join(f"{name:>16s}" for name in names))
    for row in rows:
        print(f"{row['shape']:24s}" + "".join(f"{row[name]:16.1f}" for name in names), flush=True)


def main(args: argparse.Namespace) -> None:
    """Runs the chosen ops."""
    report: dict[str, Any] = {
        "run": provenance(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    for op in args.op:
        report[op] = rows = OPS[op]()
        show(op, rows)
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
