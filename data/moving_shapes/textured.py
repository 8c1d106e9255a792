"""Drawing of scenes of the second style: textured, rotating shapes, of which one is often away for a while.

Half of the scenes have a shape that leaves the frame and comes back, a quarter one that passes behind a bar, and in a
quarter all shapes stay in sight. The rest of the description is drawn as in the first style.
"""

import dataclasses

from helios_jax.data.draws import Draws
from helios_jax.data.moving_shapes.drawing import arrange, draw_attributes, start_in_room
from helios_jax.data.moving_shapes.looks import (
    ABSENCES,
    LIGHTNESS,
    MAX_HUE,
    PATTERNS,
    PERIODS,
    SPINS,
    TURN,
    Absence,
    Bar,
    Look,
    Texture,
)
from helios_jax.data.moving_shapes.paths import leaving_axis, reach, way_along
from helios_jax.data.moving_shapes.world import DIRECTIONS, START_STEPS, UNIT, Description, Scene, Shape

_BEFORE = (16, 64)  # frames until the absent shape meets the border, if the frame is wide enough
_PIXEL = 4  # bars begin and end at whole pixels of a frame of 64 x 64, in 1/256 of the side
_WAY = 20  # way of the shape before the bar hides it, in 1/256 of the side
_HIDDEN = (8, 76)  # least and most frames behind a bar, before its width is rounded up to pixels


def sample_textured_scene(seed: int, index: int, *, num_shapes: int | None = None) -> Scene:
    """Draws scene ``index`` of the world ``seed`` in the second style.

    As in ``plain.sample_plain_scene``, with these differences. The shape that leaves the frame starts where it meets
    the border after 16 to 63 frames, or less if the frame is not wide enough. The shape that passes behind a bar is
    small and the last in the order from front to back; other shapes pass in front of the bar.

    Args:
        seed: The world.
        index: The scene; scenes are independent of each other.
        num_shapes: Shapes in it; None draws 1, 2 or 3.

    Raises:
        ValueError: More shapes than colours, or fewer than one.
    """
    draws = Draws(seed, index)
    drawn = draw_attributes(draws, num_shapes)
    count = len(drawn.kinds)
    beyond, absent = draws.choice(("nothing", "bar", "frame", "frame")), draws.below(count)
    absence = None
    if beyond == "frame":
        absence = Absence(colour=drawn.colours[absent], beyond="frame", frames=draws.choice(ABSENCES))
    elif beyond == "bar":
        absence = Absence(colour=drawn.colours[absent], beyond="bar")
        sizes = ("small" if number == absent else size for number, size in enumerate(drawn.sizes))
        drawn = dataclasses.replace(drawn, sizes=tuple(sizes))
    order = sorted(range(count), key=lambda number: (beyond == "bar" and number == absent, drawn.area(number)))
    look = _draw_look(draws, count)
    shapes, bar, starts = arrange(
        draws,
        drawn,
        order,
        prepare=lambda shapes: _draw_bar(draws, shapes[-1]) if beyond == "bar" else None,
        start=lambda shape, bar: _draw_start(draws, shape, absence, bar),
        rotates=True,
        absence=absence,
    )
    description = Description(shapes=shapes, background=drawn.background, lighting=drawn.lighting, absence=absence)
    look = dataclasses.replace(look, bar=bar)
    return Scene(description=description, starts=starts, phrasing=drawn.phrasing, look=look)


def _draw_look(draws: Draws, count: int) -> Look:
    """A look without a bar."""
    low, high = LIGHTNESS
    spins = tuple((1 - 2 * draws.below(2)) * (SPINS[0] + draws.below(SPINS[1] - SPINS[0] + 1)) for _ in range(count))
    return Look(
        hue=draws.below(2 * MAX_HUE + 1) - MAX_HUE,
        lightness=low + draws.below(high - low + 1),
        ground=_draw_texture(draws),
        textures=tuple(_draw_texture(draws) for _ in range(count)),
        angles=tuple(draws.below(TURN) for _ in range(count)),
        spins=spins,
    )


def _draw_texture(draws: Draws) -> Texture:
    low, high = PERIODS
    return Texture(
        pattern=draws.choice(PATTERNS),
        period=low + draws.below(high - low + 1),
        angle=draws.below(TURN),
        phases=(draws.below(TURN), draws.below(TURN)),
    )


def _draw_bar(draws: Draws, shape: Shape) -> Bar:
    """A bar that hides ``shape`` for some frames, with room for the whole shape on both sides."""
    radius = reach(shape, UNIT, rotates=True) // UNIT + 1
    most = UNIT - 3 * 2 * radius - _WAY - 4 * _PIXEL  # of the way while the shape is hidden
    ways = [int(way_along(shape, UNIT, frames)) // UNIT + 1 for frames in range(_HIDDEN[0], _HIDDEN[1] + 1)]
    width = _in_pixels(2 * radius + draws.choice([way for way in ways if way <= most]))
    narrowest, widest = _in_pixels(2 * radius), UNIT - width - 2 * radius - _WAY
    gap = narrowest + _PIXEL * draws.below((widest - narrowest) // _PIXEL + 1)
    return Bar(gap=gap, width=width)


def _in_pixels(length: int) -> int:
    """A length, rounded up to whole pixels."""
    return -(-length // _PIXEL) * _PIXEL


def _draw_start(draws: Draws, shape: Shape, absence: Absence | None, bar: Bar | None) -> tuple[int, int]:
    """A position in the half of the room that the shape moves away from; for the absent shape one that suits it."""
    x, y = start_in_room(draws, shape)
    if absence is None or shape.colour != absence.colour:
        return x, y
    axis = leaving_axis(shape)
    radius = reach(shape, UNIT, rotates=True)
    room = UNIT * UNIT - 2 * radius
    if bar is not None:
        # From the border behind it to where the bar begins to hide it, less some way.
        left = room - UNIT * (bar.gap + bar.width + _WAY)
        behind = START_STEPS * draws.below(max(1, left)) // room
    else:
        frames = _BEFORE[0] + draws.below(_BEFORE[1] - _BEFORE[0])
        behind = START_STEPS - START_STEPS * min(room, int(way_along(shape, UNIT, frames))) // room
    start = [x, y]
    start[axis] = behind if DIRECTIONS[shape.direction][axis] > 0 else START_STEPS - behind
    return start[0], start[1]
