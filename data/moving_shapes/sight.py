"""When shapes are in sight, and when the absent one leaves and returns, in closed form from ``centres``."""

import dataclasses
import itertools

import numpy as np

from helios_jax.data.moving_shapes.paths import centres, leaving_axis, reach
from helios_jax.data.moving_shapes.world import DIRECTIONS, UNIT, Scene
from helios_jax.typing import Bool, Int

CLEAR = 6
"""Frames in which a shape must be clear of all others for a window to show what it is."""

_LONGEST = 1500  # frames from the beginning of an absence to the return: the slowest shapes take 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spell:
    """A time during which a shape is out of sight.

    Attributes:
        shape: Number of the shape.
        left: The first frame in which nothing of it can be seen.
        back: The first frame after that in which all of it is within the frame and beside the bar.
        hidden: Frames in which nothing of it can be seen.
    """

    shape: int
    left: int
    back: int
    hidden: int


def bar_sides(scene: Scene, height: int, width: int) -> tuple[int, int, int] | None:
    """The axis across the bar, and at which whole pixels it begins and ends, in 1/256 pixel; None without a bar."""
    absent = scene.description.absent
    if scene.look is None or scene.look.bar is None or absent is None:
        return None
    bar, axis, side = scene.look.bar, leaving_axis(absent), min(height, width)
    extent = (width, height)[axis] * UNIT
    far, near = bar.gap * side, (bar.gap + bar.width) * side
    begin, end = (extent - near, extent - far) if DIRECTIONS[absent.direction][axis] > 0 else (far, near)
    return axis, begin // UNIT * UNIT, -(-end // UNIT) * UNIT


def out_of_sight(scene: Scene, frames: range, height: int, width: int) -> Bool[np.ndarray, "shapes F"]:
    """Whether the circle around a shape is entirely outside the frame or behind the bar."""
    paths, radii = _circles(scene, frames, height, width)
    extents = np.array([width, height]) * UNIT
    hidden = ((paths + radii <= 0) | (paths - radii >= extents)).any(-1)
    if (bar := bar_sides(scene, height, width)) is not None:
        axis, begin, end = bar
        absent = _absent(scene)
        along = paths[absent, :, axis]
        hidden[absent] |= (along - radii[absent, 0, 0] >= begin) & (along + radii[absent, 0, 0] <= end)
    return hidden


def clear_of_all(scene: Scene, frames: range, height: int, width: int) -> Bool[np.ndarray, "shapes F"]:
    """Whether the circle around a shape is within the frame and touches neither the bar nor another shape."""
    paths, radii = _circles(scene, frames, height, width)
    clear = uncut(scene, frames, height, width)
    for one, other in itertools.combinations(range(len(paths)), 2):
        apart = ((paths[one] - paths[other]) ** 2).sum(-1) >= (radii[one, 0, 0] + radii[other, 0, 0]) ** 2
        clear[one] &= apart
        clear[other] &= apart
    return clear


def uncut(scene: Scene, frames: range, height: int, width: int) -> Bool[np.ndarray, "shapes F"]:
    """Whether the circle around a shape is within the frame and the bar does not cover it."""
    paths, radii = _circles(scene, frames, height, width)
    inside = ((paths >= radii) & (paths + radii <= np.array([width, height]) * UNIT)).all(-1)
    if (bar := bar_sides(scene, height, width)) is not None:
        axis, begin, end = bar
        absent = _absent(scene)
        along = paths[absent, :, axis]
        inside[absent] &= (along + radii[absent, 0, 0] <= begin) | (along - radii[absent, 0, 0] >= end)
    return inside


def spells(scene: Scene, frames: range, height: int, width: int) -> tuple[Spell, ...]:
    """The absences that begin and end within ``frames``, in order."""
    if scene.description.absence is None:
        return ()
    absent = _absent(scene)
    hidden = out_of_sight(scene, frames, height, width)[absent]
    whole = uncut(scene, frames, height, width)[absent]
    found = []
    changes = np.flatnonzero(np.diff(hidden.astype(np.int8))) + 1
    for left, end in itertools.pairwise(changes):
        if hidden[left] and whole[end:].any():
            back = end + int(whole[end:].argmax())
            found.append(Spell(shape=absent, left=frames[left], back=frames[back], hidden=int(end - left)))
    return tuple(found)


def returns_in(scene: Scene, times: range, height: int, width: int) -> tuple[Spell, ...]:
    """The absences after which the window ``times`` is the first that shows the shape clearly.

    Windows of the same length follow each other from frame 0. One that shows a shape clear of all others in less than
    ``CLEAR`` frames after its return leaves it to the next.
    """
    count = len(times)
    begin = max(0, times.start - _LONGEST)
    found = []
    for spell in spells(scene, range(begin, times.stop), height, width):
        shown = clear_of_all(scene, range(spell.back, times.stop), height, width)[spell.shape]
        frames = spell.back + np.flatnonzero(shown)
        windows, clear = np.unique(frames // count, return_counts=True)
        enough = windows[clear >= CLEAR]
        if len(enough) and enough[0] == times.start // count and not _left_again(scene, spell, times, height, width):
            found.append(spell)
    return tuple(found)


def _left_again(scene: Scene, spell: Spell, times: range, height: int, width: int) -> bool:
    """Whether the shape went away a second time before the window."""
    later = spells(scene, range(spell.back, times.stop), height, width)
    return any(other.back < times.start for other in later)


def _absent(scene: Scene) -> int:
    """Number of the absent shape."""
    absent = scene.description.absent
    assert absent is not None
    return scene.description.shapes.index(absent)


def _circles(
    scene: Scene, frames: range, height: int, width: int
) -> tuple[Int[np.ndarray, "shapes F 2"], Int[np.ndarray, "shapes 1 1"]]:
    """Centres and radii of the circles around the shapes, in 1/256 pixel."""
    side = min(height, width)
    radii = [reach(shape, side, scene.look is not None) for shape in scene.description.shapes]
    return centres(scene, frames, height, width), np.array(radii)[:, None, None]
