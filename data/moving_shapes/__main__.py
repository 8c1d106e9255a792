"""Draws scenes of the world: a row of frames for each, with its caption on standard output.

    python -m helios_jax.data.moving_shapes --style=textured --out=scenes.png
    python -m helios_jax.data.moving_shapes --style=textured --size=128x128 --scenes=3 --frames=660 --out=scenes.png

For scenes in which a shape is out of sight at times, the frames in which it leaves and is back are printed too.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from absl import app

from helios_jax.arguments import Parser, path, whole
from helios_jax.data.moving_shapes.captions import caption
from helios_jax.data.moving_shapes.rendering import render
from helios_jax.data.moving_shapes.sight import spells
from helios_jax.data.moving_shapes.styles import STYLES, sample_scene


def main(args: argparse.Namespace) -> int:
    """Writes the picture and prints the captions."""
    from PIL import Image

    height, width = args.size
    times = range(0, args.frames, max(1, args.frames // args.columns))
    rows = []
    for index in range(args.scenes):
        scene = sample_scene(args.seed, index, num_shapes=args.num_shapes, style=args.style)
        print(f"{index}: {caption(scene)}")
        for spell in spells(scene, range(args.frames), height, width):
            print(f"   out of sight for {spell.hidden} frames from frame {spell.left}, back in frame {spell.back}")
        rows.append(np.concatenate(list(render(scene, times, height, width)), axis=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(args.out, format="PNG")
    print(f"{args.out}: frames {', '.join(map(str, times))}")
    return 0


def _size(text: str) -> tuple[int, int]:
    """Reads HxW, of multiples of 8."""
    height, separator, width = text.partition("x")
    if not separator or not height.isdecimal() or not width.isdecimal() or int(height) % 8 or int(width) % 8:
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW with multiples of 8, such as 64x64")
    return int(height), int(width)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ``argv[0]`` is the program."""
    parser = Parser(prog="helios_jax.data.moving_shapes", description=__doc__)

    def add_whole(name: str, help: str, default: int | None, at_least: int = 1) -> None:
        parser.add_argument(f"--{name}", type=whole(f"--{name}", at_least=at_least), default=default, help=help)

    parser.add_argument("--out", type=path("--out"), required=True, help="PNG file to write")
    parser.add_argument("--style", choices=STYLES, default="plain", help="style of the scenes (default plain)")
    add_whole("seed", "the world (default 0)", 0, at_least=0)
    add_whole("scenes", "rows (default 6)", 6)
    add_whole("frames", "frames to show (default 264)", 264)
    add_whole("columns", "frames in a row (default 12)", 12)
    add_whole("num_shapes", "shapes in each scene (default 1 to 3)", None)
    parser.add_argument("--size", type=_size, default=(64, 64), help="pixels HxW (default 64x64)")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=parse))
