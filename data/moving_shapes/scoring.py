"""How well a video shows what its caption says."""

import dataclasses

import numpy as np

from helios_jax.data.moving_shapes.captions import parse_caption
from helios_jax.data.moving_shapes.observation import Observation, SeenShape, observe
from helios_jax.data.moving_shapes.world import Description, Scene, Shape
from helios_jax.typing import UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeScore:
    """Which attributes of one captioned shape the video shows; all False if nothing has its colour."""

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
    """

    shapes: tuple[ShapeScore, ...]
    count: bool
    background: bool
    lighting: bool
    seen: Observation

    @property
    def recovered(self) -> bool:
        """Colour, kind and direction of every captioned shape are right, and there is no other shape."""
        return self.count and all(shape.recovered for shape in self.shapes)

    @property
    def value(self) -> float:
        """The fraction of all statements that hold; 0 if no captioned shape is there."""
        if not any(shape.colour for shape in self.shapes):
            return 0.0
        held = [value for shape in self.shapes for value in dataclasses.astuple(shape)]
        held += [self.count, self.background, self.lighting]
        return sum(held) / len(held)


def score(frames: UInt8[np.ndarray, "F H W 3"], expected: str | Description | Scene) -> Score:
    """Compares a video with a caption, its description or its scene.

    Only the pixels are used to find out what the video shows (``observe``). Captioned shapes are
    recognised by their colour, which differs within a scene: a shape of another colour is another shape.

    Raises:
        ValueError: The caption cannot be read (``parse_caption``).
    """
    if isinstance(expected, str):
        expected = parse_caption(expected)
    elif isinstance(expected, Scene):
        expected = expected.description
    seen = observe(frames)
    by_colour = {shape.colour: shape for shape in seen.shapes}
    return Score(
        shapes=tuple(_compare(shape, by_colour.get(shape.colour)) for shape in expected.shapes),
        count=sum(shape.copies for shape in seen.shapes) == len(expected.shapes),
        background=seen.background == expected.background,
        lighting=seen.lighting == expected.lighting,
        seen=seen,
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
