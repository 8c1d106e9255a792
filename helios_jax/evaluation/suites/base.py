"""What every suite is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from helios_jax.evaluation.end_drift import EndDrift
from helios_jax.evaluation.metrics import Metric, VideoInfo
from helios_jax.evaluation.prompts import BenchmarkPrompt
from helios_jax.evaluation.records import Record
from helios_jax.evaluation.runner import Batch, Part
from helios_jax.evaluation.sources import Sampler, file_batch
from helios_jax.evaluation.worlds import SMALLEST, World

Scores = dict[str, Any]
"""What ``scores.json`` holds next to the settings."""

Table = tuple[str, Sequence[tuple[str, str]]]
"""A heading, and rows of a name and a value, for the report."""


@runtime_checkable
class Suite(Protocol):
    """A kind of evaluation."""

    @property
    def parts(self) -> Sequence[Part]:
        """The videos and what is measured of them; the first part is what is evaluated."""
        ...

    def scores(self, records: Mapping[str, Sequence[Record]]) -> Scores:
        """Scores from the records of every part."""
        ...

    def tables(self, scores: Scores) -> list[Table]:
        """The scores as the report shows them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """Whose videos are evaluated: a checkpoint's or those in files.

    Attributes:
        sampler: Samples videos; ``None``: they are in files.
        batch: Videos sampled at a time.
        files: The files.
        chunk_frames: Frames of a chunk.
        metrics: Metrics in addition to those of the suite.
    """

    sampler: Sampler | None
    batch: int = 1
    files: tuple[Path, ...] = ()
    chunk_frames: int = 33
    metrics: tuple[Metric, ...] = ()

    @property
    def name(self) -> str:
        """The name of the part with these videos."""
        return "sampled" if self.sampler is not None else "files"

    @property
    def continues(self) -> bool:
        """Whether videos are continuations of scenes."""
        return self.sampler is not None and self.sampler.clip_of is not None

    @property
    def all_metrics(self) -> tuple[Metric, ...]:
        """The additional metrics, and the drift of each between the ends of a video."""
        return (*self.metrics, *(EndDrift(metric=metric) for metric in self.metrics))

    def batches(self, videos: Sequence[VideoInfo]) -> list[Batch]:
        """Batches of videos that are sampled."""
        assert self.sampler is not None, "there are no files"
        return self.sampler.batches(videos, self.batch)

    def file_batches(self, prompts: Mapping[str, str], most: int | None = None) -> list[Batch]:
        """The files as batches.

        Args:
            prompts: Texts by id; a file has the id that its name begins with, up to the first underscore.
            most: Frames to read of each.
        """
        return [
            file_batch(file, self.chunk_frames, prompt=prompts.get(file.stem.partition("_")[0]), most=most)
            for file in self.files
        ]


def world_prompts(world: World, count: int) -> list[BenchmarkPrompt]:
    """The captions of the first scenes of a world."""
    return [BenchmarkPrompt(id=str(number), text=world.caption(number)) for number in range(count)]


def scene_prompts(world: World, files: Sequence[Path]) -> dict[str, str]:
    """The captions of the scenes whose numbers the names of files begin with.

    Raises:
        ValueError: A name begins with something else.
    """
    ids = [file.stem.partition("_")[0] for file in files]
    if other := [file for file, id in zip(files, ids, strict=True) if not id.isdecimal()]:
        raise ValueError(
            f"{other[0].name} does not begin with the number of a scene, as 12.mp4 or 12_99_ori99.mp4 do; rename it, "
            "or give the captions with --prompt_file"
        )
    return {id: world.caption(int(id)) for id in ids}


def check_size(videos: Sequence[VideoInfo]) -> None:
    """Raises ValueError for a video that is too small or too short to be scored against a caption."""
    for video in videos:
        if min(video.height, video.width) < SMALLEST or video.num_frames < 5:
            raise ValueError(
                f"video {video.name} has {video.num_frames} frames of {video.height}x{video.width}; captions of moving "
                f"shapes are scored on at least 5 frames of {SMALLEST}x{SMALLEST}"
            )


def number(value: float | None) -> str:
    """A number for a table."""
    return "" if value is None else f"{value:.4g}"
