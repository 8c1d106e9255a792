"""Losses of several runs as a small table and a picture.

python -m helios_jax.experiments.tiny_curves runs/tiny/vae runs/tiny/stage1 runs/tiny/stage2 --out=runs/tiny/artefacts
"""

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app
from absl.flags import argparse_flags

from helios_jax.training.metrics import read_metrics

ROWS = 100
"""Most rows of a run in the table."""

WIDTH, HEIGHT, MARGIN = 300, 200, 16

Curve = list[tuple[int, float]]
"""Losses by step."""


def write_curves(runs: Sequence[Path], out: Path) -> None:
    """Writes curves.csv (run, step and all logged values) and curves.png (a panel per run, losses on a log scale)."""
    rows, curves = [], {}
    for run in runs:
        records = sorted(read_metrics(run / "metrics.jsonl").items())
        curves[run.name] = [(step, values["loss"]) for step, values in records]
        kept = records[:: -(-len(records) // ROWS)]
        rows += [{"run": run.name, "step": step, **values} for step, values in kept]
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "curves.csv", "w", newline="") as file:
        names = dict.fromkeys(name for row in rows for name in row if name != "time")
        table = csv.DictWriter(file, list(names), extrasaction="ignore")
        table.writeheader()
        table.writerows(
            {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
        )
    draw_curves(curves, out / "curves.png")


def draw_curves(curves: dict[str, Curve], file: Path) -> None:
    """Draws each run in its own panel; losses that are not positive are left out."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (WIDTH * len(curves), HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for panel, (name, curve) in enumerate(curves.items()):
        points = [(step, math.log10(loss)) for step, loss in curve if loss > 0]
        low, high = math.floor(min(y for _, y in points)), math.ceil(max(y for _, y in points) + 1e-9)
        left, last = panel * WIDTH + MARGIN, max(step for step, _ in points)

        def place(step: float, y: float, left: int = left, last: int = last, low: int = low, high: int = high) -> tuple:
            across, down = step / last, (high - y) / (high - low)
            return left + across * (WIDTH - 2 * MARGIN), 2 * MARGIN + down * (HEIGHT - 3 * MARGIN)

        for decade in range(low, high + 1):
            draw.line([place(0, decade), place(last, decade)], fill="lightgrey")
            draw.text(place(0, decade), f"1e{decade}", fill="grey")
        draw.line([place(*point) for point in points], fill="navy", width=2)
        draw.text((left, 4), f"{name}: loss {curve[-1][1]:.4g} after {last} steps", fill="black")
    picture.save(file, optimize=True)


def main(args: argparse.Namespace) -> int:
    """Writes both files."""
    write_curves(args.runs, args.out)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse_flags.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=_parse))
