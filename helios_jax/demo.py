"""The main job from end to end on a CPU in a minute: continue a clip and write a video.

    python -m helios_jax.demo --out=demo_out [--clip=car.mp4]

Writes a small checkpoint with RANDOM weights in the published layout, loads it like a published one, and continues the
clip with ``helios-sample``. The result is noise, but sizes, schedule and file formats match the real model;
published weights go through the same code.
"""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from helios_jax.arguments import Parser, path, whole
from helios_jax.cli import run_interruptible, run_program

HEIGHT, WIDTH = 192, 320

MARK = "written_by_helios_demo.txt"
"""A file that marks the folder as a finished checkpoint of the demo; written last."""


def write_clip(file: Path, num_frames: int = 48) -> None:
    """Writes a synthetic clip: a disc that moves over a gradient."""
    import numpy as np

    from helios_jax.media.video_writer import VideoWriter

    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    distance = np.hypot(y - HEIGHT * (0.5 + 0.25 * np.sin(0.1 * t)), x - WIDTH * (0.2 + 0.6 * t / num_frames))
    disc = np.clip(HEIGHT / 6 - distance, 0, 1)[..., None]
    ground = np.stack([0.3 + 0.4 * y / HEIGHT, 0.5 + 0.3 * x / WIDTH, np.full_like(t, 0.7, float)], axis=-1)
    frames = disc * np.array([0.95, 0.75, 0.1]) + (1 - disc) * ground
    with VideoWriter(file, overwrite=True) as video:
        video.write(np.round(255 * frames).astype(np.uint8))


def main(args: argparse.Namespace) -> int:
    """Writes a checkpoint and a clip, then samples; returns the exit code."""
    return run_interruptible("helios_jax.demo", lambda _: _work(args))


def _work(args: argparse.Namespace) -> int:
    from helios_jax import sample

    checkpoint = args.out / "checkpoint"
    _make_checkpoint(checkpoint)
    clip = args.clip
    if clip is None:
        clip = args.out / "clip.mp4"
        write_clip(clip)
        print(f"made a synthetic clip, {clip}")
    command = [
        "helios-sample",
        f"--model={checkpoint}",
        f"--video={clip}",
        "--prompt=A yellow disc glides over a bright landscape.",
        f"--out={args.out / 'continued.mp4'}",
        f"--num_frames={args.num_frames}",
        f"--height={HEIGHT}",
        f"--width={WIDTH}",
        "--max_text_tokens=64",
        "--overwrite",
    ]
    print(shlex.join(command), flush=True)
    status = sample.main(sample.parse(command))
    if status == 0:
        print("(random weights: the frames are noise)")
    return status


def _make_checkpoint(folder: Path) -> None:
    """Writes the checkpoint unless an earlier run has written it.

    Raises:
        FileExistsError: The folder exists and is not a checkpoint that this program finished.
    """
    from helios_jax.checkpoints.random import write_random_checkpoint

    mark = folder / MARK
    if mark.is_file():
        print(f"using the small checkpoint with RANDOM weights in {folder}")
        return
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists and is not a finished checkpoint of this demo; choose another --out")
    write_random_checkpoint(folder)
    mark.write_text("Random weights, written by python -m helios_jax.demo.\n")
    print(f"wrote a small checkpoint with RANDOM weights to {folder}: expect noise, not a picture")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="helios_jax.demo", description=__doc__)
    out = Path("demo_out")
    parser.add_argument("--out", type=path("--out"), default=out, help=f"folder to write (default {out})")
    clip_help = "clip to continue, at least 33 frames (default: a synthetic one)"
    parser.add_argument("--clip", type=path("--clip"), help=clip_help)
    frames = whole("--num_frames", at_least=1)
    parser.add_argument("--num_frames", type=frames, default=66, help="frames to generate (default 66)")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    run_program("helios_jax.demo", main, _parse)
