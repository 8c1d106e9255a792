"""Frame rates as exact fractions."""

import math
import numbers
from fractions import Fraction
from typing import Any

MIN_RATE, MAX_RATE = Fraction(1, 10), Fraction(1000)
"""Lowest and highest supported number of frames per second."""

_NTSC_ERROR = 0.006
"""Largest distance of a decimal notation such as 29.97 or 23.98 from N * 1000 / 1001."""


def frame_rate(fps: Any, what: str = "fps") -> Fraction:
    """``fps`` as an exact number of frames per second.

    Integers and fractions are kept. A float that is a decimal notation of an NTSC rate N * 1000 / 1001 is that rate
    (23.976, 29.97, 59.94: 24000/1001, 30000/1001, 60000/1001); any other is the nearest fraction with a denominator
    up to 1001.

    Raises:
        ValueError: It is not a number from 0.1 to 1000.
    """
    if isinstance(fps, numbers.Rational) and not isinstance(fps, bool):
        rate = Fraction(fps)
    elif isinstance(fps, numbers.Real) and not isinstance(fps, bool) and math.isfinite(fps):
        rate = _nearest(float(fps))
    else:
        raise ValueError(f"{what}={fps!r} must be a number of frames per second, such as 24 or 29.97")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"{what}={fps} must be from {float(MIN_RATE)} to {MAX_RATE} frames per second")
    return rate


def _nearest(fps: float) -> Fraction:
    whole = round(fps * 1.001)
    ntsc = Fraction(whole * 1000, 1001)
    # Closer to the NTSC rate than a whole number is: 29.97 and 23.98, but not 24.
    if whole % 6 == 0 and abs(fps - ntsc) < _NTSC_ERROR and fps != round(fps):
        return ntsc
    return Fraction(fps).limit_denominator(1001)
