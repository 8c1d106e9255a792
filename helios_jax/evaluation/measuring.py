"""The measurement of single videos, here or in other processes.

Metrics are mostly Python, so that threads would wait for each other. A ``Team`` has processes that each measure some of
the videos of a batch: frames go to them chunk by chunk, and only records come back.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from helios_jax.evaluation.metrics import Metric, Result, VideoInfo, known
from helios_jax.evaluation.preview import Preview
from helios_jax.evaluation.records import Record
from helios_jax.typing import UInt8

Measured = tuple[Record, Preview | None]
"""The record of a video without the time that sampling took, and its frames for the report."""


class VideoMeasurement:
    """Measures one video by several metrics; frames beyond its length are dropped."""

    def __init__(self, video: VideoInfo, metrics: Sequence[Metric], shown: bool) -> None:
        self._video = video
        self._measurements = [metric.start(video) for metric in metrics]
        self._preview = Preview(video) if shown else None
        self._seen = 0

    def update(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        """Takes the next chunk."""
        frames = frames[: self._video.num_frames - self._seen]
        if not len(frames):
            return
        self._seen += len(frames)
        for measurement in self._measurements:
            measurement.update(frames)
        if self._preview is not None:
            self._preview.update(frames)

    def finish(self) -> Measured:
        """Returns the record.

        Raises:
            ValueError: The video was shorter than expected.
        """
        video = self._video
        if self._seen != video.num_frames:
            raise ValueError(f"video {video.name} has {self._seen} frames, where {video.num_frames} were expected")
        results = [measurement.result() for measurement in self._measurements]
        return {**dataclasses.asdict(video), **_joined(results)}, self._preview


def _joined(results: Sequence[Result]) -> Record:
    values = {name: known(value) for result in results for name, value in result.values.items()}
    curves = {
        name: {"axis": curve.axis, "at": list(curve.at), "values": list(map(known, curve.values))}
        for result in results
        for name, curve in result.curves.items()
    }
    details = {name: value for result in results for name, value in result.details.items()}
    return {"values": values, "curves": curves, "details": details}


class Team:
    """Processes that measure the videos of a batch; a context manager.

    Args:
        processes: Their number; 1: this process measures.
    """

    def __init__(self, processes: int) -> None:
        self._members: list[concurrent.futures.Executor]
        if processes == 1:
            self._members = [_Here()]
            return
        # New processes: a forked copy of this one would lack the threads that JAX relies on. One pool for each, so that
        # a video always goes to the process that knows it.
        context = multiprocessing.get_context("forkserver")
        self._members = [
            concurrent.futures.ProcessPoolExecutor(1, context, initializer=_ignore_interrupts) for _ in range(processes)
        ]

    def start(self, videos: Sequence[VideoInfo], metrics: Sequence[Metric], shown: Sequence[bool]) -> None:
        """Begins to measure videos."""
        self._all(_start, list(zip(videos, [metrics] * len(videos), shown, strict=True)))

    def update(self, chunk: Sequence[UInt8[np.ndarray, "F H W 3"]]) -> None:
        """Measures the next chunk of every video; returns when that is done, so that only one is in memory."""
        self._all(_update, [(frames,) for frames in chunk])

    def finish(self, count: int) -> list[Measured]:
        """Returns the records of the videos."""
        return self._all(_finish, [()] * count)

    def _all(self, work: Callable[..., Any], arguments: Sequence[tuple]) -> list[Any]:
        team = len(self._members)
        futures = [self._members[n % team].submit(work, n, *more) for n, more in enumerate(arguments)]
        concurrent.futures.wait(futures)
        return [future.result() for future in futures]

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.shutdown(cancel_futures=True)


_MEASURED: dict[int, VideoMeasurement] = {}
"""The videos that this process measures, by their number in the batch."""


def _start(number: int, video: VideoInfo, metrics: Sequence[Metric], shown: bool) -> None:
    _MEASURED[number] = VideoMeasurement(video, metrics, shown)


def _update(number: int, frames: np.ndarray) -> None:
    _MEASURED[number].update(frames)


def _finish(number: int) -> Measured:
    return _MEASURED.pop(number).finish()


def _ignore_interrupts() -> None:
    # A terminal sends Ctrl-C to all processes; the one that asked for the work ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Here(concurrent.futures.Executor):
    """Runs everything at once in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future
