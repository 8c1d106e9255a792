"""Scores of videos sampled from new captions of the moving shapes world: how many show what their caption says.

    python -m helios_jax.evaluation.moving_shapes --pipeline=runs/tiny/stage2/product/300 --out=runs/tiny/samples

Writes scores.json, the videos below their scenes (samples.webp) and some frames of each (samples.png). A video counts
as recovered when colour, kind and direction of every captioned shape can be read from its pixels and there is no other
shape. The scores of the rendered scenes after a pass through the VAE are an upper bound. Rates are given with their
counts, for all captions and by number of shapes. The statistics of ``evaluation.videos`` (drift over chunks, high
frequencies, motion, Fréchet distance from the scenes) follow for samples, scenes through the VAE, and scenes.
"""

import argparse
import collections
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import app

from helios_jax.arguments import Parser, path
from helios_jax.config import HistoryConfig, VaeConfig
from helios_jax.data.moving_shapes.captions import parse_caption
from helios_jax.data.moving_shapes.scoring import score
from helios_jax.data.moving_shapes.source import MovingShapes
from helios_jax.data.moving_shapes.styles import CAPTION_TOKENS, STYLES, Style
from helios_jax.data.workers import ahead_of_time
from helios_jax.evaluation.caption_sheet import caption_sheet
from helios_jax.evaluation.videos import Measured, describe, measure
from helios_jax.sampling.settings import SampleSettings, one_or_many
from helios_jax.typing import UInt8

if TYPE_CHECKING:
    from helios_jax.sampling.pipeline import HeliosPipeline

SIZE = 64
CHUNK = VaeConfig.tiny().pixel_frames(HistoryConfig().chunk_frames)
FRAMES = 3 * CHUNK
FPS = 24
SHOWN = 6
"""Videos in samples.webp and samples.png."""

OF_SHAPES = ("colour", "kind", "direction", "size", "speed", "bounces")
OF_VIDEOS = ("count", "background", "lighting")

Clips = UInt8[np.ndarray, "B F H W 3"]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to sample and score.

    Attributes:
        videos: Number of videos, each with its own caption.
        batch: Videos sampled at a time.
        steps: Network calls per level, or one number for single-stage models; empty: the pipeline's recommendation.
        guidance: Guidance scale; 1: none.
        num_shapes: Shapes in each scene; 0: 1 to 3.
        style: Style of the scenes.
        world: Seed of the scenes.
        processes: Number of processes that score.
    """

    videos: int = 128
    batch: int = 64
    steps: tuple[int, ...] = ()
    guidance: float = 1.0
    num_shapes: int = 0
    style: Style = "plain"
    world: int = 1000
    processes: int = os.cpu_count() or 1

    @property
    def settings(self) -> SampleSettings:
        """How videos are sampled."""
        return SampleSettings(
            num_frames=FRAMES,
            height=SIZE,
            width=SIZE,
            steps=one_or_many(self.steps),
            guidance_scale=self.guidance,
            max_text_tokens=CAPTION_TOKENS[self.style],
        )

    @property
    def batches(self) -> list[slice]:
        """The videos of each batch."""
        starts = range(0, self.videos, self.batch)
        return [slice(start, min(start + self.batch, self.videos)) for start in starts]


def sample_and_score(pipeline: Path, out: Path, evaluation: Evaluation) -> Row:
    """Samples, scores and writes everything; returns the rates."""
    # Imported here and below: the processes that score import this module too, and need no pipeline.
    import jax

    from helios_jax.sampling.pipeline import HeliosPipeline

    out.mkdir(parents=True, exist_ok=True)
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    pipe = HeliosPipeline.from_pretrained(pipeline, dtype=dtype, vae_dtype=dtype)
    scenes = MovingShapes(
        seed=evaluation.world,
        size=evaluation.videos,
        frames=FRAMES,
        height=SIZE,
        width=SIZE,
        num_shapes=evaluation.num_shapes or None,
        style=evaluation.style,
    )
    items = [scenes[number] for number in range(len(scenes))]
    captions, frames = [item["caption"] for item in items], np.stack([item["frames"] for item in items])
    start = time.perf_counter()
    videos = in_batches(lambda part: sample(pipe, captions[part], part.start, evaluation.settings), evaluation)
    print(f"{len(videos)} videos of {FRAMES} frames in {time.perf_counter() - start:.1f} s", flush=True)
    again = in_batches(lambda part: through_vae(pipe, frames[part]), evaluation)
    workers, apart = evaluation.processes, evaluation.processes > 1
    judged = functools.partial(judge, style=evaluation.style)
    sampled, bound = (
        list(ahead_of_time(judged, zip(clips, captions, strict=True), workers, processes=apart))
        for clips in (videos, again)
    )
    measured = {
        name: list(
            ahead_of_time(functools.partial(measure_shapes, style=evaluation.style), clips, workers, processes=apart)
        )
        for name, clips in (("sampled", videos), ("vae", again), ("scenes", frames))
    }
    result = {"settings": dataclasses.asdict(evaluation), "sampled": rates(sampled), "vae": rates(bound)}
    result["statistics"] = {name: describe(found, measured["scenes"]) for name, found in measured.items()}
    rows = [{"caption": caption, **row} for caption, row in zip(captions, sampled, strict=True)]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    text = json.dumps(result, indent=1)
    (out / "scores.json").write_text(f'{text[:-2]},\n "videos": [\n  {lines}\n ]\n}}\n')
    show(out, frames, again, videos, captions)
    return result


def in_batches(clips_of: Callable[[slice], Clips], evaluation: Evaluation) -> Clips:
    """The clips of all videos, computed batch by batch."""
    return np.concatenate([clips_of(part) for part in evaluation.batches])


def sample(pipe: "HeliosPipeline", captions: Sequence[str], seed: int, settings: SampleSettings) -> Clips:
    """Samples one video for each caption, with all frames of its chunks."""
    # Streamed, because ``__call__`` would cut the video to 4k + 1 frames, and scenes have whole chunks.
    # The published negative prompt is about photographs, so guidance here uses the empty text.
    chunks = pipe.stream(captions, "", settings=settings, seed=seed, lookahead=1)
    return np.concatenate([chunk.frames for chunk in chunks], axis=1)


def through_vae(pipe: "HeliosPipeline", frames: Clips) -> Clips:
    """Encodes and decodes the clips in chunks."""
    from helios_jax.models.vae import reconstruct
    from helios_jax.parallel.host_memory import fetched

    chunks = np.split(frames, frames.shape[1] // pipe.chunk_frames, axis=1)
    with fetched(pipe.vae) as vae:
        return np.concatenate([np.asarray(reconstruct(vae, chunk)) for chunk in chunks], axis=1)


def judge(pair: tuple[UInt8[np.ndarray, "F H W 3"], str], style: Style = "plain") -> Row:
    """Scores a video against its caption: how many shapes have each attribute right, and 0 or 1 for the whole video."""
    video, caption = pair
    found = score(video, caption, style)
    return {
        "shapes": len(parse_caption(caption).shapes),
        "recovered": int(found.recovered),
        **{name: sum(getattr(shape, name) for shape in found.shapes) for name in OF_SHAPES},
        **{name: int(getattr(found, name)) for name in OF_VIDEOS},
    }


def measure_shapes(video: UInt8[np.ndarray, "F H W 3"], style: Style = "plain") -> Measured:
    """Measures a video of moving shapes, chunk by chunk."""
    return measure(video, CHUNK, shapes=True, style=style)


def rates(rows: Iterable[Row]) -> Row:
    """Rates and counts for all videos, and recovered videos by number of shapes."""
    rows = list(rows)
    by_shapes: dict[int, list[int]] = collections.defaultdict(list)
    for row in rows:
        by_shapes[row["shapes"]].append(row["recovered"])
    shapes = sum(row["shapes"] for row in rows)
    result: Row = {"recovered": _rate(sum(row["recovered"] for row in rows), len(rows))}
    for count, recovered in sorted(by_shapes.items()):
        result[f"recovered with {count}"] = _rate(sum(recovered), len(recovered))
    result |= {name: _rate(sum(row[name] for row in rows), shapes) for name in OF_SHAPES}
    result |= {name: _rate(sum(row[name] for row in rows), len(rows)) for name in OF_VIDEOS}
    return result


def _rate(right: int, total: int) -> str:
    return f"{100 * right / total:.1f} % ({right} of {total})"


def show(out: Path, scenes: Clips, again: Clips, videos: Clips, captions: Sequence[str]) -> None:
    """Writes the first videos.

    From top to bottom, samples.webp has the scene, the scene through the VAE, and the sample; samples.png has frames
    of each sample under its caption.
    """
    from PIL import Image

    rows = [np.concatenate(list(clips[:SHOWN]), axis=2) for clips in (scenes, again, videos)]
    first, *others = (Image.fromarray(frame) for frame in np.concatenate(rows, axis=1))
    first.save(out / "samples.webp", save_all=True, append_images=others, duration=1000 // FPS, loop=0, quality=50)
    picks = np.linspace(0, FRAMES - 1, 13).round().astype(int)
    sheet = caption_sheet(videos[:SHOWN, picks], captions[:SHOWN], [int(pick) + 1 for pick in picks])
    sheet.save(out / "samples.png", optimize=True)


def main(args: argparse.Namespace) -> int:
    """Samples and scores; prints the rates."""
    evaluation = Evaluation(
        videos=args.videos,
        batch=args.batch,
        steps=args.steps,
        guidance=args.guidance,
        num_shapes=args.num_shapes,
        style=args.style,
        processes=args.processes,
    )
    print(json.dumps(sample_and_score(args.pipeline, args.out, evaluation), indent=1))
    return 0


def integers(text: str) -> tuple[int, ...]:
    """Reads "10,10,10"."""
    return tuple(map(int, text.split(",")))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="helios_jax.evaluation.moving_shapes", description=__doc__)
    parser.add_argument("--pipeline", type=path("--pipeline"), required=True, help="trained checkpoint")
    parser.add_argument("--out", type=path("--out"), required=True, help="folder to write")
    parser.add_argument("--videos", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64, help="videos at a time")
    parser.add_argument("--steps", type=integers, default=(), help="per level, as 10,10,10")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--num_shapes", type=int, default=0, help="shapes in each scene (default 0: 1 to 3)")
    parser.add_argument("--style", choices=STYLES, default="plain", help="style of the scenes (default plain)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes that score")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=_parse))
