"""Worlds with captions and known scenes: what a suite asks of a world, and the moving shapes in their styles."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from helios_jax.data.moving_shapes.captions import caption
from helios_jax.data.moving_shapes.source import MovingShapes
from helios_jax.data.moving_shapes.styles import Style
from helios_jax.evaluation.caption_score import CaptionScore, measured_of
from helios_jax.evaluation.metrics import Metric
from helios_jax.evaluation.records import Record
from helios_jax.evaluation.runner import mean_values
from helios_jax.evaluation.scene_windows import OF_WINDOWS, SceneWindows
from helios_jax.evaluation.shape_rates import Row, rates
from helios_jax.evaluation.videos import describe
from helios_jax.typing import UInt8

SMALLEST = 64
"""Pixels of the shorter side of a video that can be scored."""


@runtime_checkable
class World(Protocol):
    """Scenes with captions, by number."""

    def caption(self, number: int) -> str:
        """The caption of a scene."""
        ...

    def frames(self, number: int) -> UInt8[np.ndarray, "F H W 3"]:
        """The rendered scene."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What a video is scored by."""
        ...

    @property
    def scene_metrics(self) -> tuple[Metric, ...]:
        """What a video is scored by in addition if it begins as its scene does."""
        ...

    def scores(self, records: Sequence[Record]) -> Row:
        """Scores of many videos from their records; ``recovered_rate`` is among them."""
        ...

    def statistics(self, records: Sequence[Record], scenes: Sequence[Record]) -> Row:
        """A description of many videos, next to the rendered scenes."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Which scenes.

    Attributes:
        seed: The world.
        frames: Frames of a scene.
        height: Pixel rows.
        width: Pixel columns.
        num_shapes: Shapes in each scene; ``None``: 1 to 3.
        style: Their look.
    """

    seed: int
    frames: int
    height: int
    width: int
    num_shapes: int | None = None
    style: Style = "plain"


_ENDLESS = 1 << 40
"""Scenes of a world, which is unlimited."""


class ShapesWorld:
    """The moving shapes as a ``World``, scored by ``CaptionScore``."""

    def __init__(self, settings: WorldSettings) -> None:
        self._settings = settings
        self._scenes = MovingShapes(
            seed=settings.seed,
            size=_ENDLESS,
            frames=settings.frames,
            height=settings.height,
            width=settings.width,
            num_shapes=settings.num_shapes,
            style=settings.style,
        )

    def caption(self, number: int) -> str:
        """See ``World``."""
        return caption(self._scenes.scene(number))

    def frames(self, number: int) -> UInt8[np.ndarray, "F H W 3"]:
        """See ``World``."""
        return self._scenes[number]["frames"]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """See ``World``."""
        return (CaptionScore(style=self._settings.style),)

    @property
    def scene_metrics(self) -> tuple[Metric, ...]:
        """See ``World``."""
        if self._settings.style != "textured":
            return ()
        return (SceneWindows(seed=self._settings.seed, num_shapes=self._settings.num_shapes),)

    def scores(self, records: Sequence[Record]) -> Row:
        """See ``World``: rates as texts with counts, and means of ``CaptionScore`` and ``SceneWindows``."""
        means = mean_values(records)
        names = ("first_chunk", "last_chunk", *(f"last_{name}" for name in OF_WINDOWS), "same_after_return")
        chunks = {name: means[name] for name in names if name in means}
        return rates(record["details"]["row"] for record in records) | chunks

    def statistics(self, records: Sequence[Record], scenes: Sequence[Record]) -> Row:
        """See ``World``: ``videos.describe``; empty if the videos have different numbers of chunks."""
        own, reference = ([measured_of(one["details"]["measured"]) for one in group] for group in (records, scenes))
        counts: set[int] = {len(video.statistics["brightness"]) for video in own}
        return describe(own, reference) if len(counts) == 1 else {}


def world_of(settings: WorldSettings) -> World:
    """The world of the settings."""
    return ShapesWorld(settings)


def row_of(record: Record) -> dict[str, Any]:
    """The caption of a video and its row of counts, or its values in a world that has no such rows."""
    return {"caption": record["prompt"], **record["details"].get("row", record["values"])}
