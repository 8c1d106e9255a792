"""Compares rows of the ablations with what they are to be compared with: tables, plots, and the page of the docs.

    python -m helios_jax.experiments.ablations.compare runs/ablations/results --out=runs/ablations/comparison
    python -m helios_jax.experiments.ablations.compare --page=docs/ablations.md

Without folders, the rows are those in experiments/results/ablations. Of every measure it takes the mean over the last
quarter of the chunks of a video (for returns, which are rare, over all sampled chunks), and of two rows the mean over
scenes of the difference, with a bootstrap interval over scenes. Videos of two rows continue the same scenes from the
same noise, so most of what differs from scene to scene cancels.

A path error is known only where a shape is found. A row that loses its shapes is not punished for that by the path
error, but by the caption score.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import app

from helios_jax.arguments import Parser, path
from helios_jax.experiments.ablations.bootstrap import mean_intervals
from helios_jax.experiments.ablations.results import COMMITTED, MEASURES, RowResult, read_rows
from helios_jax.experiments.ablations.tables import NOTHING, results, write_page
from helios_jax.safe_files import replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#888888", "#1f4e9c")
"""Of the row that is compared with, and of the row."""

_COLUMNS = 4


def main(args: argparse.Namespace) -> int:
    """Prints and writes the comparison."""
    try:
        rows = read_rows(args.folders)
        if args.page is not None:
            write_page(args.page, rows)
            print(f"wrote {args.page}")
            return 0
    except (ValueError, OSError) as error:
        print(f"ablations.compare: {error}", file=sys.stderr)
        return 1
    text = results(rows)
    print(text)
    if args.out is not None and text != NOTHING:
        args.out.mkdir(parents=True, exist_ok=True)
        replace_text(args.out / "comparison.md", text + "\n")
        for row in rows.values():
            draw(row, rows).savefig(args.out / f"{row.name}.png", dpi=100)
        print(f"wrote {args.out / 'comparison.md'} and {len(rows)} plots")
    return 0


def draw(row: RowResult, rows: Mapping[str, RowResult]) -> "Figure":
    """Means over scenes of every measure by chunk, of a row and of what it is compared with, with their intervals."""
    from matplotlib.figure import Figure

    reference = rows.get(row.facts["against"])
    drawn = [row] if reference is None or reference is row else [reference, row]
    lines = -(-len(MEASURES) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 3 * lines), layout="constrained")
    for axes, measure in zip(figure.subplots(lines, _COLUMNS).flat, MEASURES, strict=False):
        for one, colour in zip(drawn, COLOURS[-len(drawn) :], strict=True):
            mean, low, high = mean_intervals(one.values[measure.name])
            chunks = np.arange(len(mean))
            axes.plot(chunks, mean, color=colour, label=one.name)
            axes.fill_between(chunks, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(f"{measure.title} (best: {measure.best})", fontsize=10)
        axes.set_xlabel("chunk")
    figure.axes[0].legend()
    return figure


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(prog="ablations.compare", description=__doc__)
    parser.add_argument("folders", nargs="*", type=path("folders"), help=f"folders of rows (default {COMMITTED})")
    parser.add_argument("--out", type=path("--out"), help="folder for comparison.md and a plot for each row")
    parser.add_argument("--page", type=path("--page"), help="Markdown page whose generated parts are replaced")
    args = parser.parse_args(argv[1:])
    args.folders = args.folders or ([COMMITTED] if COMMITTED.is_dir() else [])
    return args


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=parse))
