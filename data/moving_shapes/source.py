"""Scenes as a sequence, rendered on demand."""

import dataclasses
import operator
from typing import Any

import numpy as np

from helios_jax.data.moving_shapes.captions import caption
from helios_jax.data.moving_shapes.rendering import render
from helios_jax.data.moving_shapes.styles import Style, check_style, sample_scene
from helios_jax.data.moving_shapes.world import Scene
from helios_jax.data.workers import ahead_of_time
from helios_jax.typing import UInt8

_AHEAD = 8
"""Scenes per process that are rendered or wait to be fetched: a scene takes only some milliseconds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovingShapes:
    """The first ``size`` scenes of a world, for grain's ``MapDataset.source``.

    Item i is ``{"frames": uint8 [F, H, W, 3], "caption": str}``.

    Attributes:
        seed: The world.
        size: Number of scenes.
        frames: Frames of each.
        height: Pixel rows, a multiple of 8.
        width: Pixel columns, a multiple of 8.
        num_shapes: Shapes in each scene; None: 1 to 3.
        style: One of ``STYLES``.

    Raises:
        ValueError: There is no such style.
    """

    seed: int
    size: int
    frames: int
    height: int
    width: int
    num_shapes: int | None = None
    style: Style = "plain"

    def __post_init__(self) -> None:
        check_style(self.style)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Renders scene ``index``; negative numbers count from the end."""
        scene = self.scene(index)
        return {"frames": render(scene, self.frames, self.height, self.width), "caption": caption(scene)}

    def scene(self, index: int) -> Scene:
        """The scene of item ``index``. Raises IndexError outside the sequence."""
        number = operator.index(index)
        if number < 0:
            number += self.size
        if not 0 <= number < self.size:
            raise IndexError(f"scene {index} of {self.size}")
        return sample_scene(self.seed, number, num_shapes=self.num_shapes, style=self.style)

    def render_all(self, processes: int = 1) -> UInt8[np.ndarray, "clips F H W 3"]:
        """The frames of all scenes.

        Args:
            processes: Processes that share the work; 1: this one.
        """
        frames = np.empty((self.size, self.frames, self.height, self.width, 3), np.uint8)
        ahead, apart = _AHEAD * processes, processes > 1
        items = ahead_of_time(self.__getitem__, range(self.size), processes, processes=apart, ahead=ahead)
        for target, item in zip(frames, items, strict=True):
            target[...] = item["frames"]
        return frames
