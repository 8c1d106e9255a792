"""How a shape moves: its speed, the direction it starts with, and whether it turns where it should."""

import dataclasses

import numpy as np

from helios_jax.data.moving_shapes.world import DIRECTIONS, SPEEDS
from helios_jax.typing import Bool, Float, Int

_LAG = 6  # frames between the two positions that give a velocity
_START = 0.12  # distance, in shorter sides, over which the first direction is measured
_STILL = 0.03  # shorter sides: a shape that moves less in the whole video does not move
_SEEN = 0.4  # fraction of the frames in which a shape must be seen for its path to be known
_LATE = 0.15  # fraction of the frames after which it is too late to see its first direction
_WAY_BACK = 0.05  # shorter sides: a shape that goes back less has not turned
_NEAR = 0.06  # distance, in shorter sides, up to which a shape touches the border


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """What a path shows; None for what it does not show.

    Attributes:
        speed: One of ``SPEEDS``.
        direction: One of ``DIRECTIONS``, at the start.
        turns: Reversals along either axis.
        bounces: Whether all reversals are at borders, and as many as the speed makes necessary.
    """

    speed: str | None = None
    direction: str | None = None
    turns: int = 0
    bounces: bool = False


def measure_motion(
    path: Float[np.ndarray, "F 2"],
    seen: Bool[np.ndarray, " F"],
    radius: float,
    height: int,
    width: int,
    *,
    least_seen: float = _SEEN,
    latest: float = _LATE,
) -> Motion:
    """Reads a path of centres (x, y).

    Args:
        path: Positions in pixels; only those of ``seen`` frames count.
        seen: Where the position is reliable.
        radius: Half the width of the shape in pixels.
        height: Rows of the frames.
        width: Columns of the frames.
        least_seen: Fraction of the frames in which a shape must be seen for its path to be known.
        latest: Fraction of the frames after which it is too late to see its first direction.
    """
    from scipy.ndimage import median_filter

    side = min(height, width)
    times = np.flatnonzero(seen)
    if len(times) < max(2, least_seen * len(path)) or times[0] > latest * len(path):
        return Motion()
    points = median_filter(path[times] / side, (5, 1), mode="nearest")  # removes single mistakes
    if np.linalg.norm(points - points[0], axis=-1).max() < _STILL:
        return Motion()
    velocities = _velocities(times, points)
    axis_speeds = np.median(abs(velocities), axis=0)
    speed = float(np.hypot(*axis_speeds))
    room = np.array([width, height]) / side - 2 * radius / side
    turns, proper = 0, True
    for axis in (0, 1):
        if axis_speeds[axis] < speed / 4:
            continue
        here = points[:, axis] - radius / side
        axis_turns, at_border = _reversals(here, axis_speeds[axis] * np.gradient(times.astype(float)), room[axis])
        way = axis_speeds[axis] * (times[-1] - times[0])
        towards = here[0] if velocities[: max(1, len(velocities) // 8), axis].mean() < 0 else room[axis] - here[0]
        needed = max(0, 1 + np.floor((way - towards) / room[axis]))
        turns += axis_turns
        proper &= at_border and abs(axis_turns - needed) <= 1
    return Motion(speed=_nearest_speed(speed), direction=_direction(times, points), turns=turns, bounces=bool(proper))


def _velocities(
    times: Int[np.ndarray, " points"], points: Float[np.ndarray, "points 2"]
) -> Float[np.ndarray, "pairs 2"]:
    """Differences over ``_LAG`` frames where both ends are known, else over neighbours, per frame."""
    lag = min(_LAG, max(1, len(times) // 4))
    gaps = times[lag:] - times[:-lag]
    velocities = (points[lag:] - points[:-lag]) / gaps[:, None]
    whole = gaps == lag
    return velocities[whole] if whole.any() else velocities


def _direction(times: Int[np.ndarray, " points"], points: Float[np.ndarray, "points 2"]) -> str:
    """The nearest of the eight directions to the straight line through the first part of the path."""
    ways = np.linalg.norm(points - points[0], axis=-1)
    far = np.flatnonzero(ways >= min(_START, 0.9 * ways.max()))[0] + 1
    centred = times[:far] - times[:far].mean()
    across, down = centred @ points[:far]  # slopes, up to a positive factor
    eighth = round(float(np.arctan2(-down, across)) / (np.pi / 4)) % 8
    return tuple(DIRECTIONS)[eighth]  # they are listed anticlockwise from "right"


def _reversals(
    here: Float[np.ndarray, " points"], steps: Float[np.ndarray, " points"], room: float
) -> tuple[int, bool]:
    """Number of reversals of a coordinate in [0, room], and whether all are near the ends.

    A reversal counts only after some distance back, so jitter does not count. Positions around a reversal may be
    missing, so the tolerance at the ends grows with ``steps``, the distances between neighbours.
    """
    from scipy.ndimage import maximum_filter1d

    near = _NEAR + 3 * maximum_filter1d(steps, 5)
    sign, extreme, turns, at_border = 0, 0, 0, True
    for i in range(1, len(here)):
        back = here[i] - here[extreme]
        if sign * back >= 0 and sign:
            extreme = i
        elif abs(back) > max(_WAY_BACK, 4 * steps[i]):
            if sign:
                turns += 1
                at_border &= bool(min(here[extreme], room - here[extreme]) < near[extreme])
            sign, extreme = int(np.sign(back)), i
    return turns, at_border


def _nearest_speed(speed: float) -> str | None:
    """The speed with the nearest logarithm; None beyond twice the fastest or half the slowest."""
    octaves = {name: abs(float(np.log2(max(speed, 1e-9) * 256 / way))) for name, way in SPEEDS.items()}
    name = min(octaves, key=lambda name: octaves[name])
    return name if octaves[name] < 1 else None
