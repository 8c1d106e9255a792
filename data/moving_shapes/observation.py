"""Observation of what a video shows, from its pixels alone."""

import dataclasses

import numpy as np

from helios_jax.data.moving_shapes.motion import Motion, measure_motion
from helios_jax.data.moving_shapes.outlines import find_outline, fit_outline, guess_outline, uncovered
from helios_jax.data.moving_shapes.segmentation import MIN_AREA, Segmentation, cores, grow, segment
from helios_jax.data.moving_shapes.world import SIZES
from helios_jax.typing import Bool, Float, UInt8

_NEIGHBOURS = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))], bool)
_OUTLINES = 10  # frames from which the outline is read
_MIN_CLEAR = 3  # frames without other shapes nearby from which it can be read exactly
_SIZE_TOLERANCE = 0.4  # of the logarithm of the half width


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeenShape:
    """A shape in a video; an attribute is None if it looks like nothing in this world.

    Attributes:
        colour: One of ``COLOURS``.
        kind: One of ``KINDS``.
        size: One of ``SIZES``.
        motion: How it moves.
        copies: Regions of this colour in a typical frame: more than 1 if there are several shapes.
    """

    colour: str
    kind: str | None
    size: str | None
    motion: Motion
    copies: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What a video shows.

    Attributes:
        shapes: In the order of ``COLOURS``.
        background: One of ``BACKGROUNDS``; None if it is none of them; then there are no shapes.
        lighting: One of ``LIGHTS`` or None.
        bar: There is a bar that hides what passes behind it; only videos of the second style have one.
    """

    shapes: tuple[SeenShape, ...] = ()
    background: str | None = None
    lighting: str | None = None
    bar: bool = False


def observe(frames: UInt8[np.ndarray, "F H W 3"]) -> Observation:
    """Finds the background, the light and all shapes of a video.

    Meant for at least 12 frames of at least 64 x 64 pixels; blur of a pixel or two, noise and compression
    are no obstacle. 99 frames of 64 x 64 take about 0.2 s.
    """
    scene = segment(frames)
    if scene is None:
        return Observation()
    shapes = (_see(scene, number + 1) for number in range(len(scene.colours)))
    return Observation(
        shapes=tuple(shape for shape in shapes if shape),
        background=scene.background,
        lighting=scene.lighting,
    )


def _see(scene: Segmentation, label: int) -> SeenShape | None:
    """The shape of that label; None if only specks below the size limit remain."""
    height, width = scene.labels.shape[1:]
    regions, copies = largest_regions(scene.labels == label, min(height, width))
    if not regions.any():
        return None
    covered, free = uncovered(scene, label)
    hidden = hidden_part(regions, free)
    clear = np.flatnonzero(hidden == 0)
    if len(clear) >= _MIN_CLEAR:
        clear = clear[np.linspace(0, len(clear) - 1, min(_OUTLINES, len(clear))).round().astype(int)]
        kind, radius = fit_outline(covered[clear], regions[clear])
    else:
        clearest = np.argsort(hidden, kind="stable")[:_OUTLINES]
        kind, radius = guess_outline(covered[clearest], free[clearest])
    path, found = find_outline(covered, free, kind or "circle", radius)
    return SeenShape(
        colour=scene.colours[label - 1],
        kind=kind,
        size=size_of(radius, min(height, width)),
        motion=measure_motion(path, found, radius, height, width),
        copies=copies,
    )


def largest_regions(mask: Bool[np.ndarray, "F H W"], side: int) -> tuple[Bool[np.ndarray, "F H W"], int]:
    """The largest connected region of each frame, and the typical number of regions in a frame."""
    from scipy import ndimage

    numbered, count = ndimage.label(mask, _NEIGHBOURS)
    areas = np.bincount(numbered[cores(mask)], minlength=count + 1)
    areas[areas <= MIN_AREA * side**2] = 0
    largest = np.zeros(len(mask), np.int64)
    counts = np.zeros(len(mask), np.int64)
    for frame, numbers in enumerate(map(np.unique, numbered)):
        largest[frame] = numbers[areas[numbers].argmax()]
        counts[frame] = (areas[numbers] > 0).sum()
    regions = (numbered == largest[:, None, None]) & mask
    return regions, max(1, round(float(np.median(counts))))


def hidden_part(regions: Bool[np.ndarray, "F H W"], free: Bool[np.ndarray, "F H W"]) -> Float[np.ndarray, " F"]:
    """The part of a region's surroundings that other shapes cover; 1 where a part of the region may be missing."""
    near = grow(regions, 2)
    areas = regions.sum((1, 2))
    hidden = (near & ~free).sum((1, 2)) / np.maximum(near.sum((1, 2)), 1)
    return np.where(areas > 0.7 * np.quantile(areas[areas > 0], 0.9), hidden, 1.0)


def size_of(radius: float, side: int) -> str | None:
    """The size with the nearest logarithm."""
    distances = {name: abs(np.log(max(radius, 1e-9) * 256 / (half * side))) for name, half in SIZES.items()}
    name = min(distances, key=lambda name: distances[name])
    return name if distances[name] < _SIZE_TOLERANCE else None
