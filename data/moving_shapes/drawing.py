"""What drawing a scene has in common in both styles: its attributes, and places where its shapes overlap least."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from helios_jax.data.draws import Draws
from helios_jax.data.moving_shapes.looks import Absence
from helios_jax.data.moving_shapes.paths import path, reach, touches
from helios_jax.data.moving_shapes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    KINDS,
    LIGHTS,
    NUM_PHRASINGS,
    SIZES,
    SPEEDS,
    START_STEPS,
    Shape,
)
from helios_jax.typing import Int

_TRIES = 24  # draws of the starts
_ROUNDS = 32  # draws of the directions, if shapes overlap at the start

Start = tuple[int, int]
"""Where a shape starts, see ``Scene``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attributes:
    """Attributes of a scene's shapes, in the order in which they were drawn, and of its surroundings."""

    kinds: tuple[str, ...]
    sizes: tuple[str, ...]
    speeds: tuple[str, ...]
    colours: tuple[str, ...]
    background: str
    lighting: str
    phrasing: int

    def area(self, number: int) -> float:
        """The area of a shape, in squares of 1/256 of the side."""
        return KINDS[self.kinds[number]] * SIZES[self.sizes[number]] ** 2

    def shapes(self, directions: Sequence[str], order: Sequence[int]) -> tuple[Shape, ...]:
        """The shapes with their directions, in another order."""
        return tuple(
            Shape(
                kind=self.kinds[i],
                colour=self.colours[i],
                size=self.sizes[i],
                speed=self.speeds[i],
                direction=directions[i],
            )
            for i in order
        )


def draw_attributes(draws: Draws, num_shapes: int | None) -> Attributes:
    """Draws attributes, uniform and independent, except that the colours of a scene differ.

    Args:
        draws: The scene's draws.
        num_shapes: Number of shapes; ``None`` draws 1, 2 or 3.

    Raises:
        ValueError: More shapes than colours, or fewer than one.
    """
    count = 1 + draws.below(3) if num_shapes is None else num_shapes
    if not 1 <= count <= len(COLOURS):
        raise ValueError(f"num_shapes must lie in [1, {len(COLOURS)}] (colours differ within a scene), got {count}")
    kinds, sizes, speeds = (
        tuple(draws.choice(tuple(options)) for _ in range(count)) for options in (KINDS, SIZES, SPEEDS)
    )
    return Attributes(
        kinds=kinds,
        sizes=sizes,
        speeds=speeds,
        colours=draws.sample(tuple(COLOURS), count),
        background=draws.choice(tuple(BACKGROUNDS)),
        lighting=draws.choice(tuple(LIGHTS)),
        phrasing=draws.below(NUM_PHRASINGS),
    )


def arrange[T](
    draws: Draws,
    attributes: Attributes,
    order: Sequence[int],
    *,
    prepare: Callable[[tuple[Shape, ...]], T],
    start: Callable[[Shape, T], Start],
    rotates: bool = False,
    absence: Absence | None = None,
) -> tuple[tuple[Shape, ...], T, tuple[Start, ...]]:
    """Draws directions, and several times the starts; the draw in which shapes overlap least is used.

    Directions that leave no room for all shapes are drawn again.

    Args:
        draws: The scene's draws.
        attributes: The shapes.
        order: Their order from front to back.
        prepare: Draws what depends on the directions and not on the starts.
        start: Draws the start of a shape, given what ``prepare`` drew.
        rotates: Whether shapes rotate.
        absence: The shape that is out of sight at times.

    Returns:
        The shapes from front to back, what ``prepare`` drew, and the starts.
    """
    tries = _TRIES if len(order) > 1 else 1
    for number in range(1, _ROUNDS + 1):
        shapes = attributes.shapes([draws.choice(tuple(DIRECTIONS)) for _ in order], order)
        prepared = prepare(shapes)
        starts = [tuple(start(shape, prepared) for shape in shapes) for _ in range(tries)]
        overlaps = _overlaps(shapes, np.array(starts, np.int64), rotates, absence)
        best = min(range(tries), key=overlaps.__getitem__)  # the first if several are equal
        if overlaps[best][0] == 0 or number == _ROUNDS:
            return shapes, prepared, starts[best]
    raise AssertionError("the last round returns")


def start_in_room(draws: Draws, shape: Shape) -> Start:
    """A position in the half of the room that the shape moves away from; anywhere along an axis it does not move on."""
    position = []
    for sign in DIRECTIONS[shape.direction]:
        if sign == 0:
            position.append(draws.below(START_STEPS))
        else:
            near = draws.below(START_STEPS // 2)
            position.append(near if sign > 0 else START_STEPS - near)
    x, y = position
    return x, y


def _overlaps(
    shapes: tuple[Shape, ...], starts: Int[np.ndarray, "T shapes 2"], rotates: bool, absence: Absence | None
) -> list[tuple[int, int]]:
    """``touches`` of the shapes in 99 frames of 64 x 64."""
    side, frames = 64, np.arange(99)
    radii = [reach(shape, side, rotates) for shape in shapes]
    paths = []
    for number, shape in enumerate(shapes):
        away = absence.frames if absence and shape.colour == absence.colour else 0
        paths.append(path(shape, starts[:, number], frames, side, side, radii[number], away))
    return touches(paths, radii)
