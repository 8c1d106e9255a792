"""The role of a metric: it measures one video chunk by chunk, in memory that does not grow with the video.

    measurement = metric.start(video)          # a VideoInfo: size, length and prompt
    for chunk in chunks:
        measurement.update(chunk)              # uint8 [F, H, W, 3]
    result = measurement.result()              # values, and curves over frames or chunks

``helios-evaluate --metric=my_metrics:sharp_faces`` adds a metric of one's own; ``load_metric`` says what it may be.
"""

import dataclasses
import importlib
import importlib.util
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from helios_jax.typing import UInt8

_DIGITS = 6
"""Significant digits of numbers in records."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What is known of a video before its frames.

    Attributes:
        name: The plain name of its record.
        num_frames: Its length.
        height: Pixel rows.
        width: Pixel columns.
        chunk_frames: Frames of a chunk; the last chunk may be shorter.
        prompt: Its text, if it has one.
    """

    name: str
    num_frames: int
    height: int
    width: int
    chunk_frames: int
    prompt: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width", "chunk_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"video {self.name}: {name}={getattr(self, name)} must be at least 1")

    @property
    def num_chunks(self) -> int:
        """Chunks, the last of which may be shorter."""
        return -(-self.num_frames // self.chunk_frames)

    @property
    def compared_chunks(self) -> int:
        """Chunks of at least half the length, and the first: the last of them is what the first is compared with."""
        return max(1, (self.num_frames + self.chunk_frames // 2) // self.chunk_frames)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Values along a video.

    Attributes:
        axis: What is counted along the curve: "frame", "chunk" or "frames apart".
        at: Positions.
        values: A value at each; NaN where there is none.
    """

    axis: str
    at: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.at) != len(self.values):
            raise ValueError(f"a curve of {len(self.values)} values at {len(self.at)} positions")

    @classmethod
    def over(cls, axis: str, values: Iterable[float]) -> "Curve":
        """A curve with a value at 0, 1, 2, ..."""
        found = tuple(map(float, values))
        return cls(axis=axis, at=tuple(range(len(found))), values=found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a metric found.

    Attributes:
        values: Numbers by name; NaN for what a video does not show. Suites average them over videos.
        curves: Curves by name, for the report.
        details: Anything else that JSON can hold, which is kept in the record of the video.
    """

    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Measurement(Protocol):
    """The measurement of one video."""

    def update(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        """Takes the next chunk."""
        ...

    def result(self) -> Result:
        """Returns what was found, after the last chunk."""
        ...


@runtime_checkable
class Metric(Protocol):
    """Measures videos. A metric has no state of its own, so that several videos can be measured at a time."""

    @property
    def name(self) -> str:
        """A short name, which its main value should have too."""
        ...

    def start(self, video: VideoInfo) -> Measurement:
        """Begins to measure a video."""
        ...


def load_metric(text: str) -> Metric:
    """Loads the metric that ``--metric`` names.

    Args:
        text: ``module:name`` or ``file.py:name``. The name is that of a metric, or of a class or function that returns
            one when it is called without arguments.

    Raises:
        ValueError: There is none, or it is something else.
        FileNotFoundError: There is no such file.
    """
    place, _, name = text.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"--metric={text}: write module:name or file.py:name")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        found = getattr(module, name)
        if callable(found) and not _is_metric(found):
            found = found()
    except FileNotFoundError:
        raise
    except Exception as error:  # The module is the user's code and may raise anything.
        raise ValueError(f"--metric={text}: {type(error).__name__}: {error}") from error
    if not _is_metric(found):
        raise ValueError(f"--metric={text} is {found!r:.80}, not a metric: it needs a name and start(video)")
    return found


def _is_metric(found: Any) -> bool:
    return not isinstance(found, type) and isinstance(found, Metric) and isinstance(found.name, str)


def _load_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"--metric: there is no file {file} (looked in {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(f"metric_of_{file.stem}", file)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


def known(value: float) -> float | None:
    """A number for JSON: six significant digits, and ``None`` for NaN and infinity."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
