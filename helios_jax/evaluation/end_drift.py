"""Drift of any metric between the two ends of a video, as HeliosBench measures it.

With M of the first and of the last frames of a video, n = max(1, floor(0.15 F)) each,

    drift = | M(first n) - M(last n) |                                                                    (1)
"""

import dataclasses

import numpy as np

from helios_jax.evaluation.metrics import Measurement, Metric, Result, VideoInfo
from helios_jax.typing import UInt8

SHARE = 0.15
"""Share of the frames at each end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndDrift:
    """Equation (1) for every value of a metric, as a ``Metric``.

    Attributes:
        metric: What is measured at both ends.
        at_least: Fewest frames of an end: 1, or more for a metric that cannot measure fewer. Ends of short videos may
            overlap.
    """

    metric: Metric
    at_least: int = 1

    @property
    def name(self) -> str:
        """The metric's name after "drifting_", as in the published tables."""
        return f"drifting_{self.metric.name}"

    def start(self, video: VideoInfo) -> "_Ends":
        """See ``Metric``."""
        count = min(max(self.at_least, int(SHARE * video.num_frames)), video.num_frames)
        part = dataclasses.replace(video, num_frames=count)
        return _Ends(self.metric.start(part), self.metric.start(part), count, video.num_frames - count)


class _Ends:
    def __init__(self, first: Measurement, last: Measurement, stop: int, start: int) -> None:
        self._first, self._last, self._stop, self._start = first, last, stop, start
        self._seen = 0

    def update(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        head = frames[: max(0, self._stop - self._seen)]
        tail = frames[max(0, self._start - self._seen) :]
        self._seen += len(frames)
        if len(head):
            self._first.update(head)
        if len(tail):
            self._last.update(tail)

    def result(self) -> Result:
        first, last = self._first.result().values, self._last.result().values
        return Result(values={f"drifting_{name}": abs(first[name] - last[name]) for name in first if name in last})
