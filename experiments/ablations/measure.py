"""Samples and scores the videos of a row: continuations of scenes of the small world, chunk by chunk.

Every video begins with the first chunk of a scene whose state is known at every frame, and goes on for 39 chunks. All
rows continue the same scenes with the same seeds, in the same batches, so their videos can be compared in pairs. Unlike
in video-to-video by default, no noise is mixed into the first chunk: it would help models that were trained with noise.

Sampling and scoring are those of ``helios-evaluate --suite=drift``: chunks are scored as they come and dropped, and a
video that has a record is not sampled again.
"""

import dataclasses
import functools
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from helios_jax.data.moving_shapes.styles import CAPTION_TOKENS
from helios_jax.evaluation.evaluate import evaluate
from helios_jax.evaluation.metrics import VideoInfo, known
from helios_jax.evaluation.moving_shapes import CHUNK, SIZE
from helios_jax.evaluation.records import Record, Records
from helios_jax.evaluation.runner import Options
from helios_jax.evaluation.scene_windows import CAPTION, OF_WINDOWS, SAME
from helios_jax.evaluation.sources import Sampler
from helios_jax.evaluation.suites.base import Subject, world_prompts
from helios_jax.evaluation.suites.drift import DriftSuite
from helios_jax.evaluation.worlds import ShapesWorld, WorldSettings
from helios_jax.sample.records import content_digest
from helios_jax.sampling.settings import SampleSettings, one_or_many

if TYPE_CHECKING:
    from helios_jax.sampling.pipeline import HeliosPipeline

STYLE = "textured"
"""The style whose scenes can be continued and compared."""

TOKENS = CAPTION_TOKENS[STYLE]

CURVES = {
    **OF_WINDOWS,
    "caption": CAPTION,
    "same_after_return": SAME,
    "anchor_similarity": "similarity to frame 0",
    **{name: f"{name} of chunks" for name in ("brightness", "contrast", "saturation", "sharpness", "border_jump")},
}
"""What is kept of every chunk, and the curves of records that it comes from."""

_TIMED = 6
"""Chunks of the video that measures the time of a chunk; the first one compiles."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Videos:
    """Which videos, the same for all rows.

    Attributes:
        count: Their number.
        chunks: Chunks of each, the scene's first one included.
        batch: Videos sampled at a time.
        world: Seed of the scenes; no recipe trains on it.
        seed: Seed of the noise.
    """

    count: int = 64
    chunks: int = 40
    batch: int = 16
    world: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch < 1 or self.chunks < 2:
            raise ValueError(f"{self}: at least one video of two chunks is needed, and batches of at least one")


def sample_settings(steps: Sequence[int], guidance: float, seed: int = 0) -> SampleSettings:
    """How a row is sampled; the first chunk that is sampled already has a past, and is not amplified."""
    return SampleSettings(
        height=SIZE,
        width=SIZE,
        steps=one_or_many(steps),
        guidance_scale=guidance,
        amplify_first_chunk=False,
        image_sigmas=(0.0, 0.0),
        video_sigmas=(0.0, 0.0),
        max_text_tokens=TOKENS,
        seed=seed,
    )


def measure(
    model: Path,
    out: Path,
    videos: Videos,
    *,
    steps: Sequence[int],
    guidance: float,
    load: Callable[[], "HeliosPipeline"],
    processes: int | None = None,
    on_progress: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> list[Record]:
    """Samples and scores the videos that have no record in ``out``; returns the records of all, and writes a report.

    Args:
        model: The checkpoint.
        out: Folder of the evaluation.
        videos: Which videos.
        steps: Network calls per level.
        guidance: Guidance scale.
        load: Loads the checkpoint, when something has to be sampled.
        processes: Processes that score; ``None``: as many as there are CPUs.
        on_progress: See ``Options``.

    Raises:
        ValueError: ``out`` holds an evaluation with other settings, or the videos cannot be sampled.
    """
    world = ShapesWorld(WorldSettings(seed=videos.world, frames=CHUNK, height=SIZE, width=SIZE, style=STYLE))

    def first_chunk(video: VideoInfo) -> np.ndarray:
        return world.frames(int(video.name))

    sampler = Sampler(
        load=functools.cache(load),
        settings=sample_settings(steps, guidance, videos.seed),
        negative_prompt="",
        clip_of=first_chunk,
    )
    suite = DriftSuite(
        subject=Subject(sampler=sampler, batch=videos.batch, chunk_frames=CHUNK),
        prompts=world_prompts(world, videos.count),
        num_frames=videos.chunks * CHUNK,
        height=SIZE,
        width=SIZE,
        captioned=world.scene_metrics,
    )
    settings = {
        "model_content": content_digest(model),
        **dataclasses.asdict(videos),
        "steps": list(steps),
        "guidance": guidance,
    }
    options = Options(processes=processes or os.cpu_count() or 1, on_progress=on_progress)
    evaluate(suite, out, settings, title=f"Ablation: {out.name}", options=options)
    records = Records(out)
    return [records.read("sampled", str(number)) for number in range(videos.count)]


def values_of(records: Sequence[Record]) -> dict[str, list[list[float | None]]]:
    """A value of every chunk of every video, by the names of ``CURVES``; ``None`` where it is not known."""
    return {name: [_of_chunks(record, curve) for record in records] for name, curve in CURVES.items()}


def _of_chunks(record: Record, name: str) -> list[float | None]:
    curve, chunk = record["curves"][name], record["chunk_frames"]
    values = np.array([np.nan if value is None else value for value in curve["values"]], np.float64)
    if curve["axis"] == "frame":
        values = np.array([_mean(values[start : start + chunk]) for start in range(0, len(values), chunk)])
    return [None if not np.isfinite(value) else float(f"{value:.4g}") for value in values]


def _mean(values: np.ndarray) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if kept.size else float("nan")


def chunk_milliseconds(pipe: "HeliosPipeline", settings: SampleSettings) -> float:
    """Median time of a chunk of one video in milliseconds, from noise to frames in host memory, after the first."""
    settings = dataclasses.replace(settings, num_frames=_TIMED * CHUNK)
    with pipe.stream("", "", settings=settings) as stream:
        seconds = [chunk.seconds for chunk in stream]
    return known(1e3 * statistics.median(seconds[1:])) or 0.0
