"""Where the shapes of a scene are at frame t.

Lengths are in units of the shorter side of the frame. A shape of half width r starts at the fraction u of
its room L = side - 2r along each axis and moves with constant velocity v between the borders, which mirror
it. Its centre at any frame follows without earlier frames:

    y(t) = u L + v t,   m = y(t) mod 2L,   x(t) = r + L - |m - L|.                       (1)

A shape that leaves the frame (``Absence``) has more room on one side: twice its reach, which takes it out of sight,
and half of the way that it goes in the frames of its absence,

    E = 2 r + v n / 2,   m = (y(t) + E) mod 2 (L + E),   x(t) = r - E + (L + E) - |m - (L + E)|,        (2)

here for the low border. In a scene with a ``Look`` shapes rotate, so r in (1) and (2) is the radius of the circle
around the shape. Everything is computed in integers of 1/256 pixel and is therefore equal on every platform.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from helios_jax.data.moving_shapes.looks import CIRCUMRADII
from helios_jax.data.moving_shapes.world import DIRECTIONS, SIZES, SPEEDS, START_STEPS, UNIT, Scene, Shape
from helios_jax.typing import Int

_HALF_ROOT = (46341, 65536)  # 2 ** -0.5 as a fraction: diagonal moves have the speed of straight ones


def half_width(shape: Shape, side: int) -> int:
    """Half the width of ``shape`` in a frame whose shorter side is ``side`` pixels, in 1/256 pixel."""
    return SIZES[shape.size] * side


def reach(shape: Shape, side: int, rotates: bool) -> int:
    """The distance to the border at which ``shape`` turns, in 1/256 pixel."""
    return half_width(shape, side) * CIRCUMRADII[shape.kind] // 256 if rotates else half_width(shape, side)


def centres(scene: Scene, frames: range, height: int, width: int) -> Int[np.ndarray, "shapes F 2"]:
    """The centres (x, y) of all shapes by (1) and (2), in 1/256 pixel from the top left corner of the frame."""
    starts, t = np.array(scene.starts, np.int64), np.array(frames, np.int64)
    shapes, absence, side = scene.description.shapes, scene.description.absence, min(height, width)
    away = absence.frames if absence and absence.beyond == "frame" else 0
    paths = []
    for shape, start in zip(shapes, starts, strict=True):
        radius = reach(shape, side, rotates=scene.look is not None)
        paths.append(path(shape, start, t, height, width, radius, away if shape is scene.description.absent else 0))
    return np.stack(paths)


def way_along(shape: Shape, side: int, frames: int | Int[np.ndarray, " F"]) -> int | Int[np.ndarray, " F"]:
    """The way in ``frames`` frames along each axis that the shape moves on, in 1/256 pixel."""
    way = SPEEDS[shape.speed] * side * frames
    return way * _HALF_ROOT[0] // _HALF_ROOT[1] if all(DIRECTIONS[shape.direction]) else way


def leaving_axis(shape: Shape) -> int:
    """The axis on which a shape leaves the frame or passes behind a bar: 0 (x) if it moves along it, else 1."""
    return 0 if DIRECTIONS[shape.direction][0] else 1


def path(
    shape: Shape,
    starts: Int[np.ndarray, "*T 2"],
    frames: Int[np.ndarray, " F"],
    height: int,
    width: int,
    radius: int,
    away: int = 0,
) -> Int[np.ndarray, "*T F 2"]:
    """``centres`` of one shape, from each of the starts.

    Args:
        shape: The shape.
        starts: See ``Scene``.
        frames: Numbers of frames.
        height: Rows of the frame.
        width: Columns of the frame.
        radius: Its ``reach``.
        away: Frames for which it leaves the frame, at the border that it moves to at the start; 0: it does not.
    """
    side, signs = min(height, width), DIRECTIONS[shape.direction]
    way = way_along(shape, side, frames)
    axes = []
    for axis, (sign, extent) in enumerate(zip(signs, (width, height), strict=True)):
        room = extent * UNIT - 2 * radius
        position = starts[..., axis, None] * room // START_STEPS + sign * way
        leaves = away > 0 and axis == leaving_axis(shape)
        beyond = 2 * radius + int(way_along(shape, side, away)) // 2 if leaves else 0
        low, room = beyond if sign < 0 else 0, room + beyond
        axes.append(radius - low + room - abs((position + low) % (2 * room) - room))
    return np.stack(axes, axis=-1)


def touches(paths: Sequence[Int[np.ndarray, "T F 2"]], radii: Sequence[int]) -> list[tuple[int, int]]:
    """For each of T draws: pairs that touch at the start, and touches in F frames (the first 25 count fourfold)."""
    at_start = total = np.zeros(len(paths[0]), np.int64)
    for (one, radius), (other, other_radius) in itertools.combinations(zip(paths, radii, strict=True), 2):
        touching = ((one - other) ** 2).sum(-1) < (radius + other_radius) ** 2
        at_start = at_start + touching[:, 0]
        total = total + touching.sum(-1) + 3 * touching[:, :25].sum(-1)
    return list(zip(at_start.tolist(), total.tolist(), strict=True))
