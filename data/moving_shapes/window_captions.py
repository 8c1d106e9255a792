"""Which statements of a scene's caption hold in a window of a video, whichever part of the video that is."""

import dataclasses

from helios_jax.data.moving_shapes.motion import measure_motion
from helios_jax.data.moving_shapes.paths import centres, reach
from helios_jax.data.moving_shapes.sight import CLEAR, clear_of_all, out_of_sight
from helios_jax.data.moving_shapes.textured_observation import Tracks
from helios_jax.data.moving_shapes.world import UNIT, Scene, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Appearance:
    """Which attributes of a captioned shape a window shows; all False if nothing has its colour.

    ``direction`` is that in which the scene's shape moves in this window. It is not a part of ``recovered``: a later
    window may show another direction than the caption states, and a video that is a little slow turns later.
    """

    colour: bool = False
    kind: bool = False
    size: bool = False
    speed: bool = False
    direction: bool = False

    @property
    def recovered(self) -> bool:
        """Colour and kind are right."""
        return self.colour and self.kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionScore:
    """Which statements of the caption hold in a window.

    Attributes:
        shapes: One for each captioned shape; None if the scene does not show it clearly in this window.
        count: Nothing is seen that is not captioned, and nothing twice.
        background: The background is right.
        lighting: The light is right.
        bar: There is a bar if and only if the scene has one.
    """

    shapes: tuple[Appearance | None, ...]
    count: bool
    background: bool
    lighting: bool
    bar: bool

    @property
    def recovered(self) -> bool:
        """Colour and kind of every shape that should be clear to see are right, and there is no other shape or bar."""
        return self.count and self.bar and all(shape.recovered for shape in self.shapes if shape)

    @property
    def value(self) -> float:
        """The fraction of all statements that hold."""
        held = [value for shape in self.shapes if shape for value in dataclasses.astuple(shape)]
        held += [self.count, self.background, self.lighting, self.bar]
        return sum(held) / len(held)


def caption_score(seen: Tracks, scene: Scene, times: range, height: int, width: int) -> CaptionScore:
    """Compares what is seen in a window with the caption of a scene.

    Args:
        seen: From ``track``.
        scene: The scene.
        times: Numbers of the frames of the window.
        height: Rows of the frames.
        width: Columns of the frames.
    """
    clear = clear_of_all(scene, times, height, width)
    directions = _directions(scene, times, height, width)
    by_colour = {one.shape.colour: one.shape for one in seen.shapes}

    def appearance(shape: Shape, direction: str | None) -> Appearance:
        found = by_colour.get(shape.colour)
        if found is None:
            return Appearance()
        return Appearance(
            colour=True,
            kind=found.kind == shape.kind,
            size=found.size == shape.size,
            speed=found.motion.speed == shape.speed,
            direction=found.motion.direction == direction,
        )

    description = scene.description
    captioned = {shape.colour for shape in description.shapes}
    return CaptionScore(
        shapes=tuple(
            appearance(shape, direction) if frames >= CLEAR else None
            for shape, direction, frames in zip(description.shapes, directions, clear.sum(1), strict=True)
        ),
        count=all(shape.colour in captioned and shape.copies == 1 for shape in seen.seen.shapes),
        background=seen.seen.background == description.background,
        lighting=seen.seen.lighting == description.lighting,
        bar=seen.seen.bar == (scene.look is not None and scene.look.bar is not None),
    )


def _directions(scene: Scene, times: range, height: int, width: int) -> list[str | None]:
    """The direction in which each shape moves at first in the frames in which it is in sight."""
    paths, sight = centres(scene, times, height, width) / UNIT, ~out_of_sight(scene, times, height, width)
    radii = [reach(shape, min(height, width), rotates=True) / UNIT for shape in scene.description.shapes]
    return [
        measure_motion(path, seen, radius, height, width, least_seen=0, latest=1).direction
        for path, seen, radius in zip(paths, sight, radii, strict=True)
    ]
