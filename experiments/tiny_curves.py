"""Losses of several runs as a small table and a picture; of distillation the critic's.

python -m helios_jax.experiments.tiny_curves runs/tiny/vae runs/tiny/stage1 --out=runs/tiny/artefacts
python -m helios_jax.experiments.tiny_curves experiments/results/tiny_gpu/curves.csv --out=experiments/results/tiny_gpu
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app
from absl.flags import argparse_flags

from helios_jax.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 100
"""Most rows of a run in the table."""

Curve = list[tuple[int, float]]
"""Losses by step."""


def write_curves(runs: Sequence[Path], out: Path) -> None:
    """Writes curves.csv (run, step and all logged values) and curves.png (a panel per run, losses on a log scale)."""
    rows, curves = [], {}
    for run in runs:
        records = sorted(read_metrics(run / "metrics.jsonl").items())
        # The generator of a distillation has no loss in most steps. Records without any are of a validation alone.
        records = [(step, {"loss": values.get("critic/loss")} | values) for step, values in records]
        records = [(step, values) for step, values in records if values["loss"] is not None]
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


def read_curves(table: Path) -> dict[str, Curve]:
    """The losses of each run in a curves.csv."""
    curves: dict[str, Curve] = {}
    with open(table, newline="") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["run"], []).append((int(row["step"]), float(row["loss"])))
    return curves


def draw_curves(curves: dict[str, Curve], file: Path) -> None:
    """Draws each run in its own panel; losses that are not positive are left out."""
    figure_of(curves).savefig(file, dpi=100)


def figure_of(curves: dict[str, Curve]) -> "Figure":
    """One panel per run: the loss on a log scale over the step."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(3.2 * len(curves), 2.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, curve) in zip(panels, curves.items(), strict=True):
        steps, losses = zip(*((step, loss) for step, loss in curve if loss > 0), strict=True)
        panel.plot(steps, losses, color="navy")
        panel.set_yscale("log")
        # Label ticks between the powers of ten too, because some losses fall by less than a factor of ten.
        panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        panel.tick_params(labelsize=7, which="both")
        panel.set_title(f"{name}: {curve[-1][1]:.3g} after {curve[-1][0]} steps", fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.grid(which="major", color="lightgrey", linewidth=0.5)
    panels[0].set_ylabel("loss", fontsize=8)
    return figure


def main(args: argparse.Namespace) -> int:
    """Writes both files, or the picture of a table."""
    if [run.suffix for run in args.runs] == [".csv"]:
        draw_curves(read_curves(args.runs[0]), args.out / "curves.png")
    else:
        write_curves(args.runs, args.out)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse_flags.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or one curves.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=_parse))
