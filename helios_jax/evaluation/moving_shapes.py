"""Videos of new captions of the moving shapes world, and how many of them show what their caption says.

    python -m helios_jax.evaluation.moving_shapes --pipeline=runs/tiny/stage2/product/300 --out=runs/tiny/samples

Writes scores.json, the videos below their scenes (samples.webp) and some frames of each (samples.png). A video counts
as recovered when colour, kind and direction of every captioned shape can be read from its pixels and no other shape is
there; the same scenes after a pass through the VAE bound that. Rates are given with their counts, for all captions and
by number of shapes.
"""

import argparse
import collections
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app
from absl.flags import argparse_flags

from helios_jax.data.moving_shapes.captions import parse_caption
from helios_jax.data.moving_shapes.scoring import score
from helios_jax.data.moving_shapes.source import MovingShapes, in_processes
from helios_jax.typing import UInt8

SIZE = 64
FRAMES = 99
TOKENS = 96
CHUNK = 33
FPS = 24
SHOWN = 6
"""Videos in samples.webp and samples.png."""

Clips = UInt8[np.ndarray, "B F H W 3"]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How videos are sampled.

    Attributes:
        videos: How many, of as many captions.
        batch: Videos at a time.
        steps: Network calls per level, or their number for single-stage models; empty: what the pipeline recommends.
        guidance: Guidance scale; 1: none.
        num_shapes: Shapes in each scene; 0: 1 to 3.
        world: Seed of the scenes.
        processes: Processes that score.
    """

    videos: int = 128
    batch: int = 64
    steps: tuple[int, ...] = ()
    guidance: float = 1.0
    num_shapes: int = 0
    world: int = 1000
    processes: int = os.cpu_count() or 1


def sample_and_score(pipeline: Path, out: Path, settings: Sampling) -> Row:
    """Samples, scores and writes everything; returns the rates."""
    import jax

    from helios_jax.sampling.pipeline import HeliosPipeline

    out.mkdir(parents=True, exist_ok=True)
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    pipe = HeliosPipeline.from_pretrained(pipeline, dtype=dtype, vae_dtype=dtype)
    scenes = MovingShapes(
        seed=settings.world,
        size=settings.videos,
        frames=FRAMES,
        height=SIZE,
        width=SIZE,
        num_shapes=settings.num_shapes or None,
    )
    items = [scenes[number] for number in range(len(scenes))]
    captions, frames = [item["caption"] for item in items], np.stack([item["frames"] for item in items])
    start = time.perf_counter()
    videos = in_batches(lambda part: sample(pipe, captions[part], part.start, settings), settings)
    print(f"{len(videos)} videos of {FRAMES} frames in {time.perf_counter() - start:.1f} s", flush=True)
    again = in_batches(lambda part: through_vae(pipe, frames[part]), settings)
    sampled, bound = (
        list(in_processes(judge, zip(clips, captions, strict=True), settings.processes)) for clips in (videos, again)
    )
    result = {"settings": dataclasses.asdict(settings), "sampled": rates(sampled), "vae": rates(bound)}
    rows = [{"caption": caption, **row} for caption, row in zip(captions, sampled, strict=True)]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    text = json.dumps(result, indent=1)
    (out / "scores.json").write_text(f'{text[:-2]},\n "videos": [\n  {lines}\n ]\n}}\n')
    show(out, frames, again, videos)
    return result


def in_batches(make: Any, settings: Sampling) -> Clips:
    """All clips, made for one slice of the captions after the other."""
    starts = range(0, settings.videos, settings.batch)
    return np.concatenate([make(slice(start, min(start + settings.batch, settings.videos))) for start in starts])


def sample(pipe: Any, captions: Sequence[str], seed: int, settings: Sampling) -> Clips:
    """One video for each caption, of all frames of its chunks."""
    steps = settings.steps
    chunks = pipe.stream(
        captions,
        num_frames=FRAMES,
        height=SIZE,
        width=SIZE,
        steps=(steps[0] if len(steps) == 1 else steps) if steps else None,
        guidance_scale=settings.guidance,
        max_text_tokens=TOKENS,
        seed=seed,
        lookahead=1,
    )
    return np.concatenate([chunk.frames for chunk in chunks], axis=1)


def through_vae(pipe: Any, frames: Clips) -> Clips:
    """The clips, encoded and decoded in chunks."""
    from helios_jax.training.validation import reconstruct

    chunks = np.split(frames, frames.shape[1] // CHUNK, axis=1)
    return np.concatenate([np.asarray(reconstruct(pipe.vae, chunk)) for chunk in chunks], axis=1)


def judge(pair: tuple[UInt8[np.ndarray, "F H W 3"], str]) -> Row:
    """What of a caption is right: counts of shapes, and of the video as a whole."""
    video, caption = pair
    found = score(video, caption)
    names = ("colour", "kind", "direction", "size", "speed", "bounces")
    return {
        "shapes": len(parse_caption(caption).shapes),
        "recovered": int(found.recovered),
        **{name: sum(getattr(shape, name) for shape in found.shapes) for name in names},
        **{name: int(getattr(found, name)) for name in ("count", "background", "lighting")},
    }


def rates(rows: Iterable[Row]) -> Row:
    """Rates and counts for all videos, and recovered videos by number of shapes."""
    rows = list(rows)
    by_shapes: dict[int, list[int]] = collections.defaultdict(list)
    for row in rows:
        by_shapes[row["shapes"]].append(row["recovered"])
    shapes = sum(row["shapes"] for row in rows)
    of_shapes = ("colour", "kind", "direction", "size", "speed", "bounces")
    result: Row = {"recovered": _rate(sum(row["recovered"] for row in rows), len(rows))}
    for count, recovered in sorted(by_shapes.items()):
        result[f"recovered with {count}"] = _rate(sum(recovered), len(recovered))
    result |= {name: _rate(sum(row[name] for row in rows), shapes) for name in of_shapes}
    result |= {name: _rate(sum(row[name] for row in rows), len(rows)) for name in ("count", "background", "lighting")}
    return result


def _rate(right: int, total: int) -> str:
    return f"{100 * right / total:.1f} % ({right} of {total})"


def show(out: Path, scenes: Clips, again: Clips, videos: Clips) -> None:
    """Writes the first videos: scene, the same through the VAE, and sample from top to bottom."""
    from PIL import Image

    rows = [np.concatenate(list(clips[:SHOWN]), axis=2) for clips in (scenes, again, videos)]
    first, *others = (Image.fromarray(frame) for frame in np.concatenate(rows, axis=1))
    first.save(out / "samples.webp", save_all=True, append_images=others, duration=1000 // FPS, loop=0, quality=50)
    picks = np.linspace(0, FRAMES - 1, 13).round().astype(int)
    sheet = np.concatenate([np.concatenate(list(clip[picks]), axis=1) for clip in videos[:SHOWN]])
    Image.fromarray(sheet).save(out / "samples.png", optimize=True)


def main(args: argparse.Namespace) -> int:
    """Samples and scores; prints the rates."""
    settings = Sampling(
        videos=args.videos,
        batch=args.batch,
        steps=args.steps,
        guidance=args.guidance,
        num_shapes=args.num_shapes,
        processes=args.processes,
    )
    print(json.dumps(sample_and_score(args.pipeline, args.out, settings), indent=1))
    return 0


def integers(text: str) -> tuple[int, ...]:
    """Reads "10,10,10"."""
    return tuple(map(int, text.split(",")))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse_flags.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, required=True, help="trained checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--videos", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64, help="videos at a time")
    parser.add_argument("--steps", type=integers, default=(), help="per level, as 10,10,10")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--num_shapes", type=int, default=0, help="shapes in each scene (default 0: 1 to 3)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes that score")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=_parse))
