"""Scores of videos sampled from new captions of the moving shapes world: how many show what their caption says.

    python -m helios_jax.evaluation.moving_shapes --pipeline=runs/tiny/stage2/product/300 --out=runs/tiny/samples

This is ``helios-evaluate --suite=moving_shapes`` for scripts that train: it replaces scores of other settings, or of
an earlier version of the checkpoint, and also writes the videos below their scenes (samples.webp) and some frames of
each (samples.png). For the meaning of the scores see ``evaluation.suites.moving_shapes``.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import app

from helios_jax.arguments import Parser, path
from helios_jax.config import HistoryConfig, VaeConfig
from helios_jax.data.moving_shapes.styles import CAPTION_TOKENS, STYLES, Style
from helios_jax.evaluation.caption_sheet import caption_sheet
from helios_jax.evaluation.evaluate import evaluate, scores_text
from helios_jax.evaluation.preview import read_small, shown_frames
from helios_jax.evaluation.records import SCORES, Records
from helios_jax.evaluation.runner import SHOWN, Options
from helios_jax.evaluation.shape_rates import Row
from helios_jax.evaluation.shape_rates import judge as judge
from helios_jax.evaluation.shape_rates import rates as rates
from helios_jax.evaluation.sources import Sampler, stream_chunks
from helios_jax.evaluation.suites.base import Subject
from helios_jax.evaluation.suites.moving_shapes import MovingShapesSuite
from helios_jax.evaluation.videos import Measured, measure
from helios_jax.evaluation.worlds import WorldSettings, world_of
from helios_jax.safe_files import replace_text
from helios_jax.sampling.settings import SampleSettings, one_or_many
from helios_jax.typing import UInt8

if TYPE_CHECKING:
    from helios_jax.sampling.pipeline import HeliosPipeline

SIZE = 64
CHUNK = VaeConfig.tiny().pixel_frames(HistoryConfig().chunk_frames)
FRAMES = 3 * CHUNK
FPS = 24

Clips = UInt8[np.ndarray, "B F H W 3"]


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
    shapes = WorldSettings(
        seed=evaluation.world,
        frames=FRAMES,
        height=SIZE,
        width=SIZE,
        num_shapes=evaluation.num_shapes or None,
        style=evaluation.style,
    )
    sampler = Sampler(
        load=functools.cache(functools.partial(_load, pipeline)),
        settings=evaluation.settings,
        # The published negative prompt is about photographs, so guidance here uses the empty text.
        negative_prompt="",
    )
    suite = MovingShapesSuite(
        subject=Subject(sampler=sampler, batch=evaluation.batch, chunk_frames=CHUNK),
        world=world_of(shapes),
        settings=shapes,
        videos=evaluation.videos,
    )
    settings = dataclasses.asdict(evaluation)
    version = {"pipeline": str(pipeline.absolute()), "written": (pipeline / "model_index.json").stat().st_mtime}
    compared = {name: value for name, value in settings.items() if name != "processes"} | version
    options = Options(processes=evaluation.processes)
    scores = evaluate(suite, out, compared, title=f"moving_shapes: {pipeline}", options=options, overwrite=True)
    scores["settings"] = settings
    replace_text(out / SCORES, scores_text(scores))
    show_first(suite, out)
    return {name: value for name, value in scores.items() if name != "videos"}


def _load(pipeline: Path) -> "HeliosPipeline":
    from helios_jax.sampling.pipeline import HeliosPipeline

    return HeliosPipeline.from_pretrained(pipeline, dtype="auto", vae_dtype="auto")


def in_batches(clips_of: Callable[[slice], Clips], evaluation: Evaluation) -> Clips:
    """The clips of all videos, computed batch by batch."""
    return np.concatenate([clips_of(part) for part in evaluation.batches])


def sample(pipe: "HeliosPipeline", captions: Sequence[str], seed: int, settings: SampleSettings) -> Clips:
    """Samples one video for each caption, with all frames of its chunks."""
    settings = dataclasses.replace(settings, seed=seed)
    return np.concatenate(list(stream_chunks(pipe, captions, settings, negative_prompt="")), axis=1)


def measure_shapes(video: UInt8[np.ndarray, "F H W 3"], style: Style = "plain") -> Measured:
    """Measures a video of moving shapes, chunk by chunk."""
    return measure(video, CHUNK, shapes=True, style=style)


def show_first(suite: MovingShapesSuite, out: Path) -> None:
    """Writes the first videos, from the frames that the evaluation in ``out`` has kept of them."""
    records, clips = Records(out), []
    sampled, vae, scenes = suite.parts
    for part in (scenes, vae, sampled):
        found = [read_small(records.shown(part.name, video.name)) for video in part.videos[:SHOWN]]
        clips.append(np.stack([frames for frames in found if frames is not None]))
    show(out, clips[0], clips[1], clips[2], [video.prompt or "" for video in sampled.videos])


def show(out: Path, scenes: Clips, again: Clips, videos: Clips, captions: Sequence[str]) -> None:
    """Writes the first videos.

    From top to bottom, samples.webp has the scene, the scene through the VAE, and the sample; samples.png has frames
    of each sample under its caption.
    """
    from PIL import Image

    rows = [np.concatenate(list(clips[:SHOWN]), axis=2) for clips in (scenes, again, videos)]
    first, *others = (Image.fromarray(frame) for frame in np.concatenate(rows, axis=1))
    first.save(out / "samples.webp", save_all=True, append_images=others, duration=1000 // FPS, loop=0, quality=50)
    picks = shown_frames(FRAMES)
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
