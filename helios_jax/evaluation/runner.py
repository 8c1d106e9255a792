"""Measures the videos of an evaluation: every chunk goes to all metrics and is then dropped.

Videos that are made together (a ``Batch``) are measured together. Those that have a record are not measured again, and
a batch of which all have one is not made.
"""

import concurrent.futures
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from helios_jax.evaluation.metrics import Measurement, Metric, Result, VideoInfo, known
from helios_jax.evaluation.preview import Preview
from helios_jax.evaluation.records import Record, Records
from helios_jax.media.video_writer import VideoWriter
from helios_jax.typing import UInt8

SHOWN = 6
"""Videos of each part whose frames are kept for the report."""

Chunks = Iterator[UInt8[np.ndarray, "B F H W 3"]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Videos that are made together.

    Attributes:
        videos: What is known of each.
        chunks: Makes them: the chunks of all videos, in order.
        timed: The time that making them takes is the time of sampling, and is recorded.
    """

    videos: tuple[VideoInfo, ...]
    chunks: Callable[[], Chunks]
    timed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Videos of one kind, such as the sampled ones.

    Attributes:
        name: The name of their records' folder.
        batches: The videos.
        metrics: What is measured.
    """

    name: str
    batches: Sequence[Batch]
    metrics: tuple[Metric, ...]

    @property
    def videos(self) -> list[VideoInfo]:
        """All videos, in order."""
        return [video for batch in self.batches for video in batch.videos]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How videos are measured, apart from what is measured.

    Attributes:
        threads: Threads that measure.
        videos_folder: Where sampled videos are written as mp4; ``None``: nowhere.
        fps: Their frames per second.
        on_progress: Called after every chunk and every batch with the name of the part, how many of its videos have a
            record, and how many it has.
    """

    threads: int = os.cpu_count() or 1
    videos_folder: Path | None = None
    fps: float = 24
    on_progress: Callable[[str, int, int], None] = lambda part, done, total: None


def measure_part(part: Part, records: Records, options: Options) -> list[Record]:
    """Measures the videos of a part that have no record; returns the records of all, in order.

    Raises:
        ValueError: A batch gave other frames than its videos have.
    """
    first, cold = {video.name for video in part.videos[:SHOWN]}, True
    total, done = len(part.videos), sum(records.has(part.name, video.name) for video in part.videos)
    options.on_progress(part.name, done, total)
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
        for batch in part.batches:
            missing = [n for n, video in enumerate(batch.videos) if not records.has(part.name, video.name)]
            if missing:
                works = [_Video(batch.videos[n], n, part, records, options, batch, first) for n in missing]
                tell = functools.partial(options.on_progress, part.name, done, total)
                seconds = _measure(batch, works, pool, tell)
                for work in works:
                    work.finish(seconds / len(batch.videos) if batch.timed else None, cold)
                cold, done = False, done + len(works)
                options.on_progress(part.name, done, total)
    return [records.read(part.name, video.name) for video in part.videos]


def _measure(
    batch: Batch, works: "Sequence[_Video]", pool: concurrent.futures.Executor, tell: Callable[[], None]
) -> float:
    """Feeds the chunks of a batch to its videos; returns the seconds that making them took."""
    seconds, start = 0.0, time.perf_counter()
    try:
        for chunk in batch.chunks():
            seconds += time.perf_counter() - start
            # Each video is one task, so that its measurements need no locks.
            list(pool.map(lambda work, chunk=chunk: work.update(chunk[work.number]), works))
            tell()
            start = time.perf_counter()
    except BaseException:
        for work in works:
            work.abandon()
        raise
    return seconds


class _Video:
    """A video that is being measured."""

    def __init__(
        self,
        video: VideoInfo,
        number: int,
        part: Part,
        records: Records,
        options: Options,
        batch: Batch,
        shown: set[str],
    ) -> None:
        self.number = number
        self._video, self._part, self._records = video, part, records
        self._measurements: list[Measurement] = [metric.start(video) for metric in part.metrics]
        self._preview = Preview(video) if video.name in shown else None
        self._seen = 0
        self._writer = None
        if options.videos_folder is not None and batch.timed:
            file = options.videos_folder / f"{video.name}.mp4"
            self._writer = VideoWriter(file, fps=options.fps, overwrite=True)

    def update(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        frames = frames[: self._video.num_frames - self._seen]
        if not len(frames):
            return
        self._seen += len(frames)
        for measurement in self._measurements:
            measurement.update(frames)
        if self._preview is not None:
            self._preview.update(frames)
        if self._writer is not None:
            self._writer.write(frames)

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def finish(self, seconds: float | None, cold: bool) -> None:
        self.abandon()
        video = self._video
        if self._seen != video.num_frames:
            raise ValueError(f"video {video.name} has {self._seen} frames, where {video.num_frames} were expected")
        if self._preview is not None:
            self._preview.save(self._records.shown(self._part.name, video.name))
        results = [measurement.result() for measurement in self._measurements]
        record = {
            "name": video.name,
            "prompt": video.prompt,
            "num_frames": video.num_frames,
            "chunk_frames": video.chunk_frames,
            "height": video.height,
            "width": video.width,
            **({} if seconds is None else {"seconds": known(seconds), "cold": cold}),
            **_joined(results),
        }
        self._records.write(self._part.name, record)


def _joined(results: Sequence[Result]) -> Record:
    values = {name: known(value) for result in results for name, value in result.values.items()}
    curves = {
        name: {"axis": curve.axis, "at": list(curve.at), "values": list(map(known, curve.values))}
        for result in results
        for name, curve in result.curves.items()
    }
    details = {name: value for result in results for name, value in result.details.items()}
    return {"values": values, "curves": curves, "details": details}


def mean_values(records: Sequence[Record]) -> dict[str, float]:
    """The mean of each value over the videos that have it."""
    names = dict.fromkeys(name for record in records for name in record["values"])
    found = {name: [v for record in records if (v := record["values"].get(name)) is not None] for name in names}
    return {name: float(np.mean(values)) for name, values in found.items() if values}
