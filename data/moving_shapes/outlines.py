"""Outlines: the kind, the size and the path of the shape that a region shows.

With the surface colour s, that of the background b and that of the shape c, a pixel is covered by

    a = (s - b) . (c - b) / |c - b|^2,                                                   (1)

unbiased by noise and with its sum unchanged by blur. For each kind the half width follows from the sum,
r = sqrt(sum a / area), and drawings of that size (and of sizes nearby, sharp and blurred) are compared with
a; the kind whose drawing differs least is the answer. The drawing d is then found in every frame, even where
other shapes hide a part of it, at the position x that minimises, over the pixels p free of other shapes,

    sum_p (a(p) - d(p - x))^2 = const - 2 sum_p a(p) d(p - x) + sum_p d(p - x)^2.        (2)
"""

import functools

import numpy as np

from helios_jax.data.moving_shapes.rendering import coverage
from helios_jax.data.moving_shapes.segmentation import Segmentation, cores, grow
from helios_jax.data.moving_shapes.world import COLOURS, KINDS, SIZES, UNIT
from helios_jax.typing import Bool, Float

_BLURS = (0.0, 1.0, 1.6, 2.2)  # pixels
_SCALES = (0.92, 1.0, 1.08, 1.16)
_STRENGTHS = (0.8, 1.2)  # of a colour that is a little off
_MAX_ERROR = 0.25  # squared difference allowed, as a part of the squared drawing
_MIN_VISIBLE = 0.45  # part of a shape that must be free to be found
_MIN_MATCH = 0.5  # part of the squared visible drawing that (2) must explain


def uncovered(scene: Segmentation, label: int) -> tuple[Float[np.ndarray, "F H W"], Bool[np.ndarray, "F H W"]]:
    """How far the shape of ``label`` covers each pixel, by (1), and where no other shape is in the way."""
    change = np.array(COLOURS[scene.colours[label - 1]], np.float32) / 255 - scene.backdrop
    covered = np.einsum("fhwc,hwc->fhw", scene.surface - scene.backdrop, change) / (change**2).sum(-1)
    others = cores((scene.labels != 0) & (scene.labels != label))
    return covered, ~grow(others, 2)


def fit_outline(covered: Float[np.ndarray, "F H W"], regions: Bool[np.ndarray, "F H W"]) -> tuple[str | None, float]:
    """Finds which shape covers ``covered``, in frames in which it stands alone; ``regions`` is where it is.

    Returns:
        One of ``KINDS``, or None if the regions look like none of them; and half its width in pixels.
    """
    from scipy import ndimage

    around = grow(regions, 2)
    box = tuple(slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(around.any(0)))
    around = around[:, *box]
    covered = covered[:, *box] * around
    mass = covered.sum((1, 2))
    if mass.min() <= 0:
        return None, 0.0
    y, x = np.indices(covered.shape[1:], np.float32)
    middles = np.stack([(covered * axis).sum((1, 2)) / mass for axis in (x, y)], axis=-1)
    best = (np.inf, "", 0.0)
    for kind in KINDS:
        area, centroid = _geometry(kind)
        for scale in _SCALES:
            radius = scale * float(np.sqrt(np.median(mass) / area))
            drawn = _draw(kind, radius, middles - np.array([0, centroid]) * radius, covered.shape[1:])
            for blur in _BLURS:
                blurred = ndimage.gaussian_filter(drawn, (0, blur, blur)) if blur else drawn
                power = float((blurred**2).sum())
                strength = np.clip(float((covered * blurred).sum()) / power, *_STRENGTHS)
                error = float((((covered - strength * blurred) * around) ** 2).sum()) / (strength**2 * power)
                best = min(best, (error, kind, radius))
    error, kind, radius = best
    return (kind if error <= _MAX_ERROR else None), radius


def guess_outline(covered: Float[np.ndarray, "F H W"], free: Bool[np.ndarray, "F H W"]) -> tuple[str | None, float]:
    """``fit_outline`` for frames in which other shapes are in the way: which drawing makes (2) least."""
    side = min(covered.shape[1:])
    best = (-np.inf, "", 0.0, 0.0)
    for kind in KINDS:
        for half in SIZES.values():
            gain, most = _gains(covered, free, _drawing(kind, half * side / UNIT))
            gain, most = gain.reshape(len(gain), -1), most.reshape(len(gain), -1)
            places = gain.argmax(1)[:, None]
            total = float(np.take_along_axis(gain, places, 1).sum())
            if total > best[0]:
                best = total, kind, half * side / UNIT, float(np.take_along_axis(most, places, 1).sum())
    total, kind, radius, most = best
    return (kind if total >= (1 - _MAX_ERROR) * most > 0 else None), radius


def find_outline(
    covered: Float[np.ndarray, "F H W"], free: Bool[np.ndarray, "F H W"], kind: str, radius: float
) -> tuple[Float[np.ndarray, "F 2"], Bool[np.ndarray, " F"]]:
    """Finds a shape in every frame by (2).

    Args:
        covered: See (1).
        free: Where no other shape is in the way.
        kind: The shape.
        radius: Half its width in pixels.

    Returns:
        Its centres (x, y) in pixels, and in which frames enough of it is visible to know.
    """
    return find_drawing(covered, free, _drawing(kind, radius))


def find_drawing(
    covered: Float[np.ndarray, "F H W"], free: Bool[np.ndarray, "F H W"], drawn: Float[np.ndarray, "rows columns"]
) -> tuple[Float[np.ndarray, "F 2"], Bool[np.ndarray, " F"]]:
    """``find_outline`` with the drawing of a shape, in a box whose middle its centre is."""
    gain, most = _gains(covered, free, drawn)
    frames, (height, width) = np.arange(len(gain)), gain.shape[1:]
    row, column = np.divmod(gain.reshape(len(gain), -1).argmax(1), width)
    found = gain[frames, row, column] >= _MIN_MATCH * most[frames, row, column]
    x = column + _peak(*(gain[frames, row, np.clip(column + i, 0, width - 1)] for i in (-1, 0, 1)))
    y = row + _peak(*(gain[frames, np.clip(row + i, 0, height - 1), column] for i in (-1, 0, 1)))
    return np.stack([x + 0.5, y + 0.5], axis=-1).astype(np.float32), found


def _gains(
    covered: Float[np.ndarray, "F H W"], free: Bool[np.ndarray, "F H W"], drawn: Float[np.ndarray, "rows columns"]
) -> tuple[Float[np.ndarray, "F H W"], Float[np.ndarray, "F H W"]]:
    """How much the shape reduces (2) when it is placed at each pixel, and the most that it could."""
    from scipy import ndimage, signal

    drawn = ndimage.gaussian_filter(drawn[None], (0, 1, 1))

    def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return signal.fftconvolve(image.astype(np.float32), kernel[:, ::-1, ::-1], mode="same", axes=(1, 2))

    most = correlate(free, drawn**2)
    visible = correlate(free, drawn) / drawn.sum()
    gain = 2 * correlate(covered * free, drawn) - most
    return np.where(visible >= _MIN_VISIBLE, gain, -np.inf), most


def _drawing(kind: str, radius: float) -> Float[np.ndarray, "rows columns"]:
    """Coverage of the pixels of a box by a shape whose centre is in the middle."""
    reach = int(np.ceil(radius)) + 3
    return _draw(kind, radius, np.full((1, 2), float(reach)), (2 * reach + 1, 2 * reach + 1))[0]


def _peak(before: np.ndarray, here: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Position of the vertex of the parabola through three neighbours, relative to the middle one, the largest."""
    bend = 2 * here - before - after
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isfinite(bend) & (bend > 0), (after - before) / (2 * bend), 0.0)


def _draw(
    kind: str, radius: float, centres: Float[np.ndarray, "F 2"], size: tuple[int, int]
) -> Float[np.ndarray, "F H W"]:
    """Coverage of the pixels of a box by shapes whose centres are given in pixels."""
    y, x = np.indices(size)
    dx, dy = (np.round((axis - centres[:, i, None, None]) * UNIT).astype(np.int64) for i, axis in ((0, x), (1, y)))
    return coverage(kind, dx, dy, round(radius * UNIT)).astype(np.float32) / UNIT


@functools.cache
def _geometry(kind: str) -> tuple[float, float]:
    """Area (in squares of the half width) and height of the centroid below the centre (in half widths)."""
    n = 128
    drawn = _draw(kind, float(n), np.full((1, 2), n + 1.0), (2 * n + 3, 2 * n + 3))[0]
    below = np.arange(2 * n + 3) - (n + 1.0)
    return float(drawn.sum()) / n**2, float((drawn.sum(1) * below).sum() / drawn.sum()) / n
