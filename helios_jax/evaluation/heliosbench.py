"""HeliosBench: its ratings and totals, as published, and its names of videos.

The mean of a metric over all videos, clipped to [0, 1], becomes a rating: 10 if it meets the first threshold, one less
for every further threshold that it needs, and 1 if it meets none. Totals are weighted sums of ratings. Constants are
those of the evaluation scripts of PKU-YuanGroup/Helios, oddities included:

- The table for aesthetics of long videos ends with 0.40, 0.45, 0.40 where 0.35, 0.30 would be expected, so that the
  ratings 3 and 2 cannot be reached.
- The weights for long videos sum to 0.996.

Aesthetics, smoothness, semantics and naturalness are measured with networks that are not part of this library.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

SHORT_FRAMES = 81
"""Frames that are scored of a video by the rules for short videos."""

DURATIONS = (120, 240, 720, 1440)
"""Frames of the benchmark's videos; 60 prompts have each."""


def _falling(first: int, last: int, step: int) -> tuple[float, ...]:
    return tuple(round(0.01 * count, 2) for count in range(first, last - 1, -step))


def _rising(step: float) -> tuple[float, ...]:
    return tuple(round(step * count, 2) for count in range(1, 10))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How ratings and the total follow from means.

    Attributes:
        thresholds: For each metric, those of the ratings 10 to 2.
        weights: The weight of each rating in the total.
        frames: Frames that are scored of every video; ``None``: all.
    """

    thresholds: Mapping[str, tuple[float, ...]]
    weights: Mapping[str, float]
    frames: int | None = None

    def rating(self, name: str, value: float) -> int:
        """The rating of a metric's mean, 1 to 10. Drift is better when it is smaller.

        Raises:
            ValueError: The mean is NaN.
        """
        if math.isnan(value):
            raise ValueError(f"{name} has no value, and so no rating")
        value = min(max(value, 0.0), 1.0)
        for lost, threshold in enumerate(self.thresholds[name]):
            if value <= threshold if name.startswith("drifting_") else value >= threshold:
                return 10 - lost
        return 1

    def ratings(self, means: Mapping[str, float]) -> dict[str, int]:
        """The ratings of those metrics that have one."""
        return {name: self.rating(name, means[name]) for name in self.weights if name in means}

    def total(self, ratings: Mapping[str, int]) -> float | None:
        """The weighted sum; ``None`` unless every metric has a rating."""
        if self.weights.keys() - ratings.keys():
            return None
        return round(sum(weight * ratings[name] for name, weight in self.weights.items()), 6)


_COMMON = {
    "motion_amplitude": _falling(45, 5, 5),
    "motion_smoothness": _falling(99, 91, 1),
    "semantic": _falling(30, 22, 1),
    "naturalness": (0.65, 0.60, 0.55, 0.50, 0.45, 0.40, 0.30, 0.25, 0.20),
}

SHORT = Rules(
    thresholds={"aesthetic": _falling(70, 30, 5), **_COMMON},
    weights={
        "aesthetic": 0.10,
        "motion_amplitude": 0.10,
        "motion_smoothness": 0.10,
        "semantic": 0.35,
        "naturalness": 0.35,
    },
    frames=SHORT_FRAMES,
)

LONG = Rules(
    thresholds={
        "aesthetic": (0.70, 0.65, 0.60, 0.55, 0.50, 0.45, 0.40, 0.45, 0.40),
        **_COMMON,
        "drifting_aesthetic": _rising(0.01),
        "drifting_motion_smoothness": _rising(0.01),
        "drifting_semantic": _rising(0.01),
        "drifting_naturalness": tuple(round(0.04 + 0.02 * count, 2) for count in range(1, 10)),
    },
    weights={
        "aesthetic": 0.03,
        "motion_amplitude": 0.03,
        "motion_smoothness": 0.03,
        "semantic": 0.255,
        "naturalness": 0.255,
        "drifting_aesthetic": 0.099,
        "drifting_motion_smoothness": 0.099,
        "drifting_semantic": 0.099,
        "drifting_naturalness": 0.099,
    },
)

RULES = {"long": LONG, "short": SHORT}

_FPS_PER_POINT = 3.2


def throughput_rating(frames_per_second: float) -> int:
    """The rating of a speed at 384 x 640, text encoder and VAE included: 1 up to 3.2 frames/s, 10 above 28.8."""
    return min(10, max(1, math.ceil(frames_per_second / _FPS_PER_POINT)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoName:
    """The parts of a name such as ``2_240_ori81.mp4``.

    Attributes:
        id: Number of the prompt.
        target: Frames that the benchmark asks for.
        frames: Frames that the video has.
    """

    id: int
    target: int
    frames: int

    def __str__(self) -> str:
        return f"{self.id}_{self.target}_ori{self.frames}"

    @classmethod
    def read(cls, stem: str) -> "VideoName | None":
        """Reads a file name without its suffix; ``None`` if it has another form."""
        found = re.fullmatch(r"(\d+)_(\d+)_ori(\d+)", stem)
        return cls(id=int(found[1]), target=int(found[2]), frames=int(found[3])) if found else None
