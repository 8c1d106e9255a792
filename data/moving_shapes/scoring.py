"""How well a video shows what its caption says."""

import dataclasses

import numpy as np

from helios_jax.data.moving_shapes.captions import parse_caption
from helios_jax.data.moving_shapes.observation import Observation, SeenShape, observe
from helios_jax.data.moving_shapes.styles import Style, check_style
from helios_jax.data.moving_shapes.textured_observation import leaves, track
from helios_jax.data.moving_shapes.world import Description, Scene, Shape
from helios_jax.typing import UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeScore:
    """Which attributes of one captioned shape the video shows; all False if nothing has its colour.

    ``bounces`` of a shape that leaves the frame says that it does not turn back at the border where it leaves.
    """

    colour: bool = False
    kind: bool = False
    size: bool = False
    speed: bool = False
    direction: bool = False
    bounces: bool = False

    @property
    def recovered(self) -> bool:
        """Colour, kind and direction are right."""
        return self.colour and self.kind and self.direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Which statements of a caption hold.

    Attributes:
        shapes: One for each captioned shape, in their order.
        count: There are as many shapes as captioned.
        background: The background is right.
        lighting: The light is right.
        seen: What the video shows.
        bar: There is a bar if and only if the caption says so; None in the style without bars.
    """

    shapes: tuple[ShapeScore, ...]
    count: bool
    background: bool
    lighting: bool
    seen: Observation
    bar: bool | None = None

    @property
    def recovered(self) -> bool:
        """Colour, kind and direction of every captioned shape are right, and there is no other shape or bar."""
        return self.count and self.bar is not False and all(shape.recovered for shape in self.shapes)

    @property
    def value(self) -> float:
        """The fraction of all statements that hold; 0 if no captioned shape is there."""
        if not any(shape.colour for shape in self.shapes):
            return 0.0
        held = [value for shape in self.shapes for value in dataclasses.astuple(shape)]
        held += [self.count, self.background, self.lighting] + ([] if self.bar is None else [self.bar])
        return sum(held) / len(held)


def score(
    frames: UInt8[np.ndarray, "F H W 3"], expected: str | Description | Scene, style: Style | None = None
) -> Score:
    """Compares a video with a caption, its description or its scene.

    Only the pixels are used to find out what the video shows (``observe``). Captioned shapes are
    recognised by their colour, which differs within a scene: a shape of another colour is another shape.

    Args:
        frames: The video.
        expected: What it should show.
        style: One of ``STYLES``; None: that of the scene, or ``plain`` for captions and descriptions.

    Raises:
        ValueError: The caption cannot be read (``parse_caption``), or there is no such style.
    """
    if style is None:
        style = "textured" if isinstance(expected, Scene) and expected.look is not None else "plain"
    if isinstance(expected, str):
        expected = parse_caption(expected)
    elif isinstance(expected, Scene):
        expected = expected.description
    if check_style(style) == "plain":
        seen, bar = observe(frames), None
        returns = {}
    else:
        tracks = track(frames)
        seen = tracks.seen
        bar = seen.bar == (expected.absence is not None and expected.absence.beyond == "bar")
        absent = expected.absent if expected.absence and expected.absence.beyond == "frame" else None
        size = frames.shape[1:3]
        returns = {
            one.shape.colour: leaves(one, absent.direction, *size)
            for one in tracks.shapes
            if absent is not None and one.shape.colour == absent.colour
        }
    by_colour = {shape.colour: shape for shape in seen.shapes}
    shapes = [_compare(shape, by_colour.get(shape.colour)) for shape in expected.shapes]
    return Score(
        shapes=tuple(
            dataclasses.replace(found, bounces=returns[shape.colour]) if shape.colour in returns else found
            for shape, found in zip(expected.shapes, shapes, strict=True)
        ),
        count=sum(shape.copies for shape in seen.shapes) == len(expected.shapes),
        background=seen.background == expected.background,
        lighting=seen.lighting == expected.lighting,
        seen=seen,
        bar=bar,
    )


def _compare(shape: Shape, seen: SeenShape | None) -> ShapeScore:
    if seen is None:
        return ShapeScore()
    return ShapeScore(
        colour=True,
        kind=seen.kind == shape.kind,
        size=seen.size == shape.size,
        speed=seen.motion.speed == shape.speed,
        direction=seen.motion.direction == shape.direction,
        bounces=seen.motion.bounces,
    )
