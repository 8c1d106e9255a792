"""Kind, size and path of shapes that rotate.

With the coverage a of the pixels z = x + iy, measured from the centroid, and the mass m = sum a, the numbers

    t_n = |sum a z^n| / m^(1 + n/2),   n = 3, 4, 5,                                        (1)

do not depend on size and rotation. Nor does blur that is the same in all directions change them, since z^n is harmonic.
Triangle, square and star have one that is not zero, a circle has none. The half width follows from the mass. The path
is found as in ``outlines``, with the mean of the drawings at all angles.
"""

import functools

import numpy as np

from helios_jax.data.moving_shapes.looks import TURN
from helios_jax.data.moving_shapes.outlines import find_drawing
from helios_jax.data.moving_shapes.textured_rendering import rotated_coverage
from helios_jax.data.moving_shapes.world import KINDS, UNIT
from helios_jax.typing import Bool, Float

_ORDERS = (3, 4, 5)
_ANGLES = 24  # drawings in the mean over all angles
_MAX_DISTANCE = 0.6  # from the moments of a kind, in those of its own largest


def centroids(covered: Float[np.ndarray, "F H W"]) -> tuple[Float[np.ndarray, "F 2"], Float[np.ndarray, " F"]]:
    """The centroid (x, y) of the coverage of each frame, in pixels, and the mass."""
    height, width = covered.shape[1:]
    mass = np.maximum(covered.sum((1, 2)), 1e-6)
    x = covered.sum(1) @ (np.arange(width, dtype=np.float32) + 0.5)
    y = covered.sum(2) @ (np.arange(height, dtype=np.float32) + 0.5)
    return np.stack([x, y], axis=-1) / mass[:, None], mass


def moments(covered: Float[np.ndarray, "F H W"]) -> Float[np.ndarray, "F 3"]:
    """The numbers (1) of each frame."""
    middles, mass = centroids(covered)
    y, x = np.indices(covered.shape[1:], np.float32) + np.float32(0.5)
    z = (x - middles[:, 0, None, None]) + 1j * (y - middles[:, 1, None, None])
    found = [abs((covered * z**order).sum((1, 2))) / mass ** (1 + order / 2) for order in _ORDERS]
    return np.stack(found, axis=-1)


def kind_of(numbers: Float[np.ndarray, "F 3"]) -> str | None:
    """The kind with the nearest mean of the numbers (1), each in units of its largest; None if none is near."""
    scales = np.stack([_expected(kind) for kind in KINDS]).max(0)
    mean = np.median(numbers, axis=0) / scales
    distances = {kind: float(np.linalg.norm(mean - _expected(kind) / scales)) for kind in KINDS}
    kind = min(distances, key=lambda name: distances[name])
    return kind if distances[kind] < _MAX_DISTANCE else None


def find_rotated(
    covered: Float[np.ndarray, "F H W"], free: Bool[np.ndarray, "F H W"], kind: str, radius: float
) -> tuple[Float[np.ndarray, "F 2"], Bool[np.ndarray, " F"]]:
    """``outlines.find_outline`` of a shape at any angle: its centroids, and where they are known."""
    return find_drawing(covered, free, _mean_drawing(kind, round(radius * UNIT)))


@functools.cache
def _expected(kind: str) -> Float[np.ndarray, " 3"]:
    """The numbers (1) of a kind."""
    n = 64
    line = ((np.arange(3 * n) - 1.5 * n + 0.5) * UNIT).astype(np.int32)
    drawn = rotated_coverage(kind, line[None, None, :], line[None, :, None], n * UNIT, np.zeros(1, np.int64))
    return moments(drawn / np.float32(UNIT))[0]


@functools.lru_cache(maxsize=64)
def _mean_drawing(kind: str, radius: int) -> Float[np.ndarray, "rows columns"]:
    """The mean coverage over all angles, of a box with the centroid in its middle."""
    reach = int(np.ceil(1.2 * radius / UNIT)) + 3
    line = (np.arange(-reach, reach + 1) * UNIT).astype(np.int32)
    angles = np.arange(_ANGLES) * TURN // _ANGLES
    dx, dy = (np.broadcast_to(axis, (_ANGLES, *axis.shape)) for axis in (line[None, :], line[:, None]))
    return (rotated_coverage(kind, dx, dy, radius, angles) / np.float32(UNIT)).mean(0)
