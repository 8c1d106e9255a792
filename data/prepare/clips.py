"""What a clip is, and clips of the world of moving shapes.

A clip is a description; the host that encodes it reads it later. Clips of files are in ``file_clips``.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from helios_jax.media.resizing import PixelSize
from helios_jax.typing import UInt8

if TYPE_CHECKING:
    from helios_jax.data.moving_shapes.styles import Style
    from helios_jax.data.moving_shapes.world import Scene


@runtime_checkable
class Clip(Protocol):
    """A clip, before it is read.

    Attributes:
        uid: Its name, unique in the dataset.
        caption: Its text.
        fps: Frames per second; 0 when unknown.
    """

    @property
    def uid(self) -> str:
        """The name."""
        ...

    @property
    def caption(self) -> str:
        """The text."""
        ...

    @property
    def fps(self) -> float:
        """The rate."""
        ...

    def aspect(self) -> float | None:
        """Width over height; ``None`` when any will do.

        Raises:
            ClipError: The clip cannot be opened.
        """
        ...

    def read(self, size: PixelSize, max_frames: int) -> UInt8[np.ndarray, "F H W 3"]:
        """Frames of that size, at most ``max_frames`` of them.

        Raises:
            ClipError: The clip cannot be read.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesClip:
    """A scene of the world of moving shapes; a ``Clip``.

    Attributes:
        seed: The world.
        index: The scene.
        frames: How many frames.
        num_shapes: Shapes in it; ``None``: 1 to 3.
        style: One of ``moving_shapes.styles.STYLES``.
        fps: See ``Clip``.
    """

    seed: int
    index: int
    frames: int
    num_shapes: int | None = None
    style: "Style" = "plain"
    fps: float = 24.0

    @property
    def uid(self) -> str:
        """See ``Clip``."""
        style = "" if self.style == "plain" else f"{self.style}-"
        kind = "" if self.num_shapes is None else f"{self.num_shapes}-"
        return f"moving_shapes-{style}{kind}{self.seed}-{self.index}"

    @functools.cached_property
    def scene(self) -> "Scene":
        """The scene itself."""
        from helios_jax.data.moving_shapes.styles import sample_scene

        return sample_scene(self.seed, self.index, num_shapes=self.num_shapes, style=self.style)

    @property
    def caption(self) -> str:
        """See ``Clip``."""
        from helios_jax.data.moving_shapes.captions import caption

        return caption(self.scene)

    def aspect(self) -> None:
        """See ``Clip``."""

    def read(self, size: PixelSize, max_frames: int) -> UInt8[np.ndarray, "F H W 3"]:
        """See ``Clip``."""
        from helios_jax.data.moving_shapes.rendering import render

        return render(self.scene, min(self.frames, max_frames), *size)
