"""Drawing of scenes of the first style."""

import numpy as np

from helios_jax.data.draws import Draws
from helios_jax.data.moving_shapes.paths import half_width, path, touches
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
    Description,
    Scene,
    Shape,
)
from helios_jax.typing import Int

_TRIES = 24  # draws of the starts
_ROUNDS = 32  # draws of the directions, if shapes overlap at the start


def sample_plain_scene(seed: int, index: int, *, num_shapes: int | None = None) -> Scene:
    """Draws scene ``index`` of the world ``seed``.

    Attributes are uniform and independent, with these exceptions. The colours of a scene differ. Smaller shapes are
    in front of larger ones, so that none is hidden. A shape starts in the half of its room that it moves away
    from, so that its direction can be seen before it turns. Starts are drawn several times, and the draw in which
    shapes overlap least is used; directions that leave no room for all shapes are drawn again.

    Args:
        seed: The world.
        index: The scene; scenes are independent of each other.
        num_shapes: Shapes in it; None draws 1, 2 or 3.

    Raises:
        ValueError: More shapes than colours, or fewer than one.
    """
    draws = Draws(seed, index)
    count = 1 + draws.below(3) if num_shapes is None else num_shapes
    if not 1 <= count <= len(COLOURS):
        raise ValueError(f"num_shapes must lie in [1, {len(COLOURS)}] (colours differ within a scene), got {count}")
    kinds, sizes, speeds = ([draws.choice(tuple(options)) for _ in range(count)] for options in (KINDS, SIZES, SPEEDS))
    colours, background = draws.sample(tuple(COLOURS), count), draws.choice(tuple(BACKGROUNDS))
    lighting, phrasing = draws.choice(tuple(LIGHTS)), draws.below(NUM_PHRASINGS)
    order = sorted(range(count), key=lambda i: KINDS[kinds[i]] * SIZES[sizes[i]] ** 2)

    rounds = 0
    while True:
        rounds += 1
        directions = [draws.choice(tuple(DIRECTIONS)) for _ in range(count)]
        shapes = tuple(
            Shape(kind=kinds[i], colour=colours[i], size=sizes[i], speed=speeds[i], direction=directions[i])
            for i in order
        )
        tries = [tuple(start_in_room(draws, shape) for shape in shapes) for _ in range(_TRIES if count > 1 else 1)]
        overlaps = _overlaps(shapes, np.array(tries, np.int64))
        best = min(range(len(tries)), key=overlaps.__getitem__)  # the first if several are equal
        if overlaps[best][0] == 0 or rounds == _ROUNDS:
            break
    description = Description(shapes=shapes, background=background, lighting=lighting)
    return Scene(description=description, starts=tries[best], phrasing=phrasing)


def start_in_room(draws: Draws, shape: Shape) -> tuple[int, int]:
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


def _overlaps(shapes: tuple[Shape, ...], starts: Int[np.ndarray, "T shapes 2"]) -> list[tuple[int, int]]:
    """``touches`` of shapes that do not rotate, in 99 frames of 64 x 64."""
    side, frames = 64, np.arange(99)
    radii = [half_width(shape, side) for shape in shapes]
    paths = [path(shape, starts[:, i], frames, side, side, radii[i]) for i, shape in enumerate(shapes)]
    return touches(paths, radii)
