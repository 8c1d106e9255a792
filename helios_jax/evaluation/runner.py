"""Measures the videos of an evaluation: every chunk goes to all metrics and is then dropped.

Videos that are made together (a ``Batch``) are measured together. Those that have a record are not measured again, and
a batch of which all have one is not made. Batches of files are read and measured by several processes at a time.
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from helios_jax.data.workers import ahead_of_time
from helios_jax.evaluation.measuring import Measured, Team, VideoMeasurement
from helios_jax.evaluation.metrics import Metric, VideoInfo, known
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
        sampled: They are sampled: the time that it takes is recorded.
        apart: Another process can make them; ``chunks`` can then be pickled.
    """

    videos: tuple[VideoInfo, ...]
    chunks: Callable[[], Chunks]
    sampled: bool = False
    apart: bool = False


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
        processes: Processes that measure.
        videos_folder: Where sampled videos are written as mp4; ``None``: nowhere.
        fps: Their frames per second.
        on_progress: Called after every chunk and every batch with the name of the part, how many of its videos have a
            record, and how many it has.
    """

    processes: int = os.cpu_count() or 1
    videos_folder: Path | None = None
    fps: float = 24
    on_progress: Callable[[str, int, int], None] = lambda part, done, total: None


def measure_part(part: Part, records: Records, options: Options) -> list[Record]:
    """Measures the videos of a part that have no record; returns the records of all, in order.

    Raises:
        ValueError: A batch gave fewer frames than its videos have, or a record is that of another video.
    """
    shown, total = {video.name for video in part.videos[:SHOWN]}, len(part.videos)
    done = sum(records.has(part.name, video.name) for video in part.videos)
    missing = [batch for batch in part.batches if not all(records.has(part.name, video.name) for video in batch.videos)]

    def tell() -> None:
        options.on_progress(part.name, done, total)

    tell()
    for batch in _measured(part, missing, records, shown, options, tell):
        for record, preview in batch:
            if preview is not None:
                preview.save(records.shown(part.name, record["name"]))
            records.write(part.name, record)
            done += 1
        tell()
    return [_checked(records.read(part.name, video.name), video, records) for video in part.videos]


def _measured(
    part: Part,
    batches: Sequence[Batch],
    records: Records,
    shown: set[str],
    options: Options,
    tell: Callable[[], None],
) -> Iterator[list[Measured]]:
    """What was found in each batch, as it becomes known."""
    apart = options.processes > 1 and len(batches) > 1 and all(batch.apart for batch in batches)
    if apart:
        work = functools.partial(_measure_alone, metrics=part.metrics, shown=shown)
        workers = min(options.processes, len(batches))
        yield from ahead_of_time(work, batches, workers, processes=True)
        return
    widest = max((len(batch.videos) for batch in batches), default=1)
    with Team(min(options.processes, widest)) as team:
        for place, batch in enumerate(batches):
            videos = [video for video in batch.videos if not records.has(part.name, video.name)]
            numbers = [batch.videos.index(video) for video in videos]
            team.start(videos, part.metrics, [video.name in shown for video in videos])
            seconds = 0.0
            with _writers(batch, videos, options) as write:
                start = time.perf_counter()
                for chunk in batch.chunks():
                    seconds += time.perf_counter() - start
                    write([chunk[number] for number in numbers])
                    team.update([chunk[number] for number in numbers])
                    tell()
                    start = time.perf_counter()
            time_of = {"seconds": known(seconds / len(batch.videos)), "cold": place == 0} if batch.sampled else {}
            yield [({**record, **time_of}, preview) for record, preview in team.finish(len(videos))]


def _measure_alone(batch: Batch, metrics: Sequence[Metric], shown: set[str]) -> list[Measured]:
    """Makes and measures a batch in this process."""
    measurements = [VideoMeasurement(video, metrics, video.name in shown) for video in batch.videos]
    for chunk in batch.chunks():
        for measurement, frames in zip(measurements, chunk, strict=True):
            measurement.update(frames)
    return [measurement.finish() for measurement in measurements]


@contextlib.contextmanager
def _writers(
    batch: Batch, videos: Sequence[VideoInfo], options: Options
) -> Iterator[Callable[[Sequence[np.ndarray]], None]]:
    """A function that writes the next chunk of every video to its file, if files are wanted."""
    if options.videos_folder is None or not batch.sampled:
        yield lambda chunk: None
        return
    with contextlib.ExitStack() as stack:
        files = [options.videos_folder / f"{video.name}.mp4" for video in videos]
        writers = [stack.enter_context(VideoWriter(file, fps=options.fps, overwrite=True)) for file in files]

        def write(chunk: Sequence[np.ndarray]) -> None:
            for writer, video, frames in zip(writers, videos, chunk, strict=True):
                if rest := video.num_frames - writer.num_frames:
                    writer.write(frames[:rest])

        yield write


def _checked(record: Record, video: VideoInfo, records: Records) -> Record:
    """The record if it is that of the video; prompts and files can have changed under the same name."""
    for name, value in dataclasses.asdict(video).items():
        if record[name] != value:
            raise ValueError(
                f"{records.folder}: the record of video {video.name} has {name}={record[name]!r:.60}, now it is "
                f"{value!r:.60}; choose another --out"
            )
    return record


def mean_values(records: Sequence[Record]) -> dict[str, float]:
    """The mean of each value over the videos that have it."""
    names = dict.fromkeys(name for record in records for name in record["values"])
    found = {name: [v for record in records if (v := record["values"].get(name)) is not None] for name in names}
    return {name: float(np.mean(values)) for name, values in found.items() if values}
