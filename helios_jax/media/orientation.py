"""Display matrices: how a video is turned or mirrored when it is shown.

Phones store frames as the sensor reads them, with a matrix (ISO/IEC 14496-12, 8.3.2) that maps the stored position
(x, y) to the one on the screen,

    x' = a x + c y,   y' = b x + d y,   up to a shift,                                             (1)

where y points down. Eight matrices map the pixel grid to itself: four rotations, and four reflections, which have a
negative determinant and are written by front cameras.
"""

import math
import struct
from typing import Any

import numpy as np

from helios_jax.typing import UInt8

Matrix = tuple[int, int, int, int]
"""(a, b, c, d) of (1), each -1, 0 or 1."""

IDENTITY: Matrix = (1, 0, 0, 1)

_TOLERANCE = 0.02


def display_matrix(frame: Any) -> Matrix:
    """The matrix of a decoded frame; the identity if none is stored. Scales are ignored.

    Raises:
        ValueError: It does not map the pixel grid to itself.
    """
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return IDENTITY
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(stored))
    rows = [(x / (math.hypot(x, y) or 1), y / (math.hypot(x, y) or 1)) for x, y in ((a, b), (c, d))]
    exact = [round(value) for row in rows for value in row]
    errors = [abs(value - number) for value, number in zip((*rows[0], *rows[1]), exact, strict=True)]
    if max(errors) > _TOLERANCE or abs(exact[0] * exact[3] - exact[1] * exact[2]) != 1:
        angle = math.degrees(math.atan2(rows[0][1], rows[0][0]))
        raise ValueError(f"is rotated by {angle:.0f} degrees or sheared; re-encode it without rotation")
    return exact[0], exact[1], exact[2], exact[3]


def upright(pixels: UInt8[np.ndarray, "H W 3"], matrix: Matrix) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The pixels as the matrix shows them, by (1)."""
    a, b, c, d = matrix
    if a == 0:  # rows become columns
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[::d, ::a])
