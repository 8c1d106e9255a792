"""The world of moving shapes: how fast scenes are rendered and read, and how many are read without a mistake.

    python benchmarks/moving_shapes.py --out=moving_shapes.json

Renders 99 frames of 40 scenes in each style at 64 x 64 and 128 x 128 and takes the best of three rounds of one core's
time; reads 99 frames of each of 256 scenes, and the windows of 33 frames of six.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from provenance import provenance

from helios_jax.data.moving_shapes import MovingShapes, score, score_windows
from helios_jax.data.moving_shapes.styles import STYLES, Style

FRAMES = 99
ROUNDS = 3
RENDERED = 40
WINDOWS = 6


def core_seconds(work: Callable[[], object]) -> float:
    """The time of this process that ``work`` takes, at best."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def measure(style: Style, size: int, scenes: int) -> list:
    """A row of the table."""
    source = MovingShapes(seed=200, size=scenes, frames=FRAMES, height=size, width=size, style=style)
    rendering = core_seconds(lambda: [source[index] for index in range(RENDERED)])
    first = source[0]
    reading = core_seconds(lambda: score(first["frames"], first["caption"], style))
    recovered = perfect = 0
    for index in range(scenes):
        found = score(source[index]["frames"], source[index]["caption"], style)
        recovered += found.recovered
        perfect += found.value == 1
    window = None
    if style == "textured":
        pairs = [(source[index]["frames"], source.scene(index)) for index in range(WINDOWS)]
        seconds = core_seconds(lambda: [score_windows(frames, scene) for frames, scene in pairs])
        window = round(seconds / (WINDOWS * FRAMES // 33), 2)
    frames = round(RENDERED * FRAMES / rendering, -1)
    return [f"{style}, {size}x{size}", int(frames), round(reading, 2), window, recovered, perfect]


def main(args: argparse.Namespace) -> None:
    """Measures everything and writes the file."""
    rows = [measure(style, size, args.scenes) for style in STYLES for size in (64, 128)]
    report = {
        "title": "Moving shapes",
        **provenance(),
        "conditions": f"{args.scenes} scenes of 1 to 3 shapes; {os.environ.get('OMP_NUM_THREADS', 'all')} BLAS threads",
        "columns": [
            "style",
            "frames rendered a second and core",
            "seconds to read 99 frames",
            "seconds to score a window",
            f"recovered, of {args.scenes}",
            f"every statement right, of {args.scenes}",
        ],
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=256)
    main(parser.parse_args())
