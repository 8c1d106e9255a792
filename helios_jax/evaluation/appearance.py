"""Brightness, contrast, saturation, sharpness and more along a video, and whether the borders of chunks can be seen.

With the statistics of ``evaluation.statistics`` and c_t = mean |Y_t - Y_(t-1)|, the change to frame t,

    drift        last chunk less first chunk, of every statistic                                          (1)
    border_ratio mean of c_t over the first frames of chunks / mean of c_t over all other frames          (2)

A last chunk of less than half the length does not count in (1). A ratio of 1 means that the step from one chunk to the
next is like any other step. c_t of the first frame is unknown.
"""

import dataclasses
import math

import numpy as np

from helios_jax.evaluation.metrics import Curve, Result, VideoInfo
from helios_jax.evaluation.statistics import STATISTICS, StreamedStatistics, drift, luma, sharpness_of_frames
from helios_jax.typing import Float, UInt8

OF_FRAMES = ("brightness", "contrast", "saturation", "sharpness", "change")
"""Statistics that have a curve over frames."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Appearance:
    """Equations (1) and (2), as a ``Metric``.

    Values: ``drift_<statistic>`` and ``border_ratio``; ``border_jump`` is the mean over borders of equation (8) of
    ``evaluation.statistics``. Curves: every statistic over chunks, and those of ``OF_FRAMES`` over frames.
    """

    @property
    def name(self) -> str:
        """See ``Metric``."""
        return "appearance"

    def start(self, video: VideoInfo) -> "_Appearance":
        """See ``Metric``."""
        return _Appearance(video)


class _Appearance:
    def __init__(self, video: VideoInfo) -> None:
        self._video = video
        self._chunks = StreamedStatistics()
        self._frames: dict[str, list[float]] = {name: [] for name in OF_FRAMES}
        self._last: np.ndarray | None = None

    def update(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        self._chunks.update(frames)
        y = luma(frames)
        before = self._last if self._last is not None else np.full_like(y[0], np.nan)
        colours = frames.astype(np.float32) / 255
        found = {
            "brightness": y.mean((1, 2)),
            "contrast": y.std((1, 2)),
            "saturation": (colours.max(-1) - colours.min(-1)).mean((1, 2)),
            "sharpness": sharpness_of_frames(y),
            "change": np.abs(np.diff(y, axis=0, prepend=before[None])).mean((1, 2)),
        }
        for name, values in found.items():
            self._frames[name] += values.tolist()
        self._last = y[-1]

    def result(self) -> Result:
        chunks = self._chunks.result()
        compared = self._video.compared_chunks
        values = {f"drift_{name}": drift(chunks[name][:compared]) for name in STATISTICS if name != "border_jump"}
        jumps = chunks["border_jump"][1:]
        values["border_jump"] = float(jumps.mean()) if len(jumps) else math.nan
        values["border_ratio"] = border_ratio(np.array(self._frames["change"]), self._video.chunk_frames)
        curves = {f"{name} of chunks": Curve.over("chunk", chunks[name]) for name in STATISTICS}
        return Result(values=values, curves=curves | {n: Curve.over("frame", v) for n, v in self._frames.items()})


def border_ratio(changes: Float[np.ndarray, " F"], chunk_frames: int) -> float:
    """Equation (2) for c_t of every frame; NaN without a border, without other steps, or if nothing moves."""
    numbers = np.arange(len(changes))
    borders = changes[(numbers > 0) & (numbers % chunk_frames == 0)]
    inside = changes[numbers % chunk_frames != 0]
    if not len(borders) or not len(inside) or inside.mean() == 0:
        return math.nan
    return float(borders.mean() / inside.mean())
