"""What a video of the moving shapes world shows of its caption, at its beginning and chunk by chunk.

A caption states the first direction of its shapes, so motion is judged on the first ``JUDGED`` frames only. Along the
video, a chunk's score is the part of the statements about it that hold: colour, kind and size of every captioned
shape, and number of shapes, background and light.
"""

import dataclasses

import numpy as np

from helios_jax.data.moving_shapes.scoring import score
from helios_jax.data.moving_shapes.styles import Style
from helios_jax.evaluation.metrics import Curve, Result, VideoInfo, known
from helios_jax.evaluation.shape_rates import judge
from helios_jax.evaluation.statistics import STATISTICS
from helios_jax.evaluation.videos import Measured, measure
from helios_jax.typing import UInt8

JUDGED = 99
"""Frames at the beginning that are judged as a whole."""

_APPEARANCE, _SURROUNDINGS = ("colour", "kind", "size"), ("count", "background", "lighting")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionScore:
    """Compares a video with its caption, as a ``Metric``. At most ``JUDGED`` frames are kept in memory.

    Values: ``recovered`` (0 or 1), ``first_chunk`` and ``last_chunk`` (0 to 1). Details: the row of
    ``shape_rates.judge``, and the ``Measured`` of the first frames, see ``measured_of``.

    Attributes:
        style: Style of the scenes that captions describe.
    """

    style: Style = "plain"

    @property
    def name(self) -> str:
        """See ``Metric``."""
        return "caption_score"

    def start(self, video: VideoInfo) -> "_CaptionScore":
        """See ``Metric``. Raises ValueError if the video has no caption."""
        if not video.prompt:
            raise ValueError(f"video {video.name} has no caption to be compared with")
        return _CaptionScore(video.prompt, video, self.style)


class _CaptionScore:
    def __init__(self, caption: str, video: VideoInfo, style: Style) -> None:
        self._caption, self._video, self._style = caption, video, style
        self._first: list[np.ndarray] = []
        self._chunks: list[float] = []

    def update(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        if missing := JUDGED - sum(map(len, self._first)):
            self._first.append(frames[:missing].copy())
        self._chunks.append(chunk_score(frames, self._caption, self._style))

    def result(self) -> Result:
        first = np.concatenate(self._first)
        row = judge((first, self._caption), self._style)
        measured = measure(first, self._video.chunk_frames, shapes=True, style=self._style)
        return Result(
            values={
                "recovered": row["recovered"],
                "first_chunk": self._chunks[0],
                "last_chunk": self._chunks[self._video.compared_chunks - 1],
            },
            curves={"caption score of chunks": Curve.over("chunk", self._chunks)},
            details={"row": row, "measured": _plain(measured)},
        )


def chunk_score(frames: UInt8[np.ndarray, "F H W 3"], caption: str, style: Style = "plain") -> float:
    """The part of the statements about a chunk that hold, 0 to 1; see above."""
    found = score(frames, caption, style)
    held = [getattr(shape, name) for shape in found.shapes for name in _APPEARANCE]
    held += [getattr(found, name) for name in _SURROUNDINGS]
    return sum(held) / len(held)


def measured_of(details: dict) -> Measured:
    """The ``Measured`` in the details of a record."""
    return Measured(
        statistics={name: _array(details["statistics"][name]) for name in STATISTICS},
        features=_array(details["features"]),
        displacement=float(_array([details["displacement"]])[0]),
    )


def _plain(measured: Measured) -> dict:
    return {
        "statistics": {name: list(map(known, values)) for name, values in measured.statistics.items()},
        "features": list(map(known, measured.features)),
        "displacement": known(measured.displacement),
    }


def _array(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)
