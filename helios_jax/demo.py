"""The main job from end to end on a CPU in a minute: continue a clip and write a video.

    python -m helios_jax.demo --out=demo_out [--clip=car.mp4]

Writes a small checkpoint with RANDOM weights in the published layout, loads it like a published one, and continues the
clip with ``helios-sample``. The result is noise, but sizes, schedule and file formats match the real model;
published weights go through the same code.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, logging
from absl.flags import argparse_flags

HEIGHT, WIDTH = 192, 320


def write_clip(path: Path, num_frames: int = 48) -> None:
    """Writes a synthetic clip: a disc that moves over a gradient."""
    import numpy as np

    from helios_jax.media.video_writer import VideoWriter

    t, y, x = np.meshgrid(np.arange(num_frames), np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    distance = np.hypot(y - HEIGHT * (0.5 + 0.25 * np.sin(0.1 * t)), x - WIDTH * (0.2 + 0.6 * t / num_frames))
    disc = np.clip(HEIGHT / 6 - distance, 0, 1)[..., None]
    ground = np.stack([0.3 + 0.4 * y / HEIGHT, 0.5 + 0.3 * x / WIDTH, np.full_like(t, 0.7, float)], axis=-1)
    frames = disc * np.array([0.95, 0.75, 0.1]) + (1 - disc) * ground
    with VideoWriter(path, overwrite=True) as video:
        video.write(np.round(255 * frames).astype(np.uint8))


def main(args: argparse.Namespace) -> int:
    """Writes a checkpoint and a clip, then samples."""
    logging.set_verbosity(logging.WARNING)
    from helios_jax import sample
    from helios_jax.checkpoints.random import write_random_checkpoint

    out = args.out
    checkpoint = out / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    write_random_checkpoint(checkpoint)
    print(f"wrote a small checkpoint with RANDOM weights to {checkpoint}: expect noise, not a picture")
    clip = args.clip
    if clip is None:
        clip = out / "clip.mp4"
        write_clip(clip)
        print(f"made a synthetic clip, {clip}")
    video = out / "continued.mp4"
    command = [
        "helios-sample",
        f"--model={checkpoint}",
        f"--video={clip}",
        "--prompt=A yellow disc glides over a bright landscape.",
        f"--out={video}",
        f"--num_frames={args.num_frames}",
        f"--height={HEIGHT}",
        f"--width={WIDTH}",
        "--max_text_tokens=64",
        "--overwrite",
    ]
    print(" ".join(command[:1] + [repr(part) if " " in part else part for part in command[1:]]), flush=True)
    status = sample.main(sample.parse(command))
    if status == 0:
        print(f"video: {video}\ncontact sheet: {video.with_suffix('.png')}\n(random weights: the frames are noise)")
    return status


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse_flags.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder to write")
    parser.add_argument("--clip", type=Path, help="clip to continue, at least 33 frames (default: a synthetic one)")
    parser.add_argument("--num_frames", type=int, default=66, help="frames to generate")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=_parse))
