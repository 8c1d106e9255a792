"""Observation of what a video of the second style shows, from its pixels alone."""

import dataclasses
import itertools

import numpy as np

from helios_jax.data.moving_shapes.looks import CIRCUMRADII
from helios_jax.data.moving_shapes.motion import measure_motion
from helios_jax.data.moving_shapes.observation import Observation, SeenShape, hidden_part, largest_regions, size_of
from helios_jax.data.moving_shapes.rotated_outlines import centroids, find_rotated, kind_of, moments
from helios_jax.data.moving_shapes.segmentation import cores, grow
from helios_jax.data.moving_shapes.textured_segmentation import (
    TexturedSegmentation,
    coverage_of,
    segment_textured,
)
from helios_jax.data.moving_shapes.world import DIRECTIONS, KINDS
from helios_jax.typing import Bool, Float, UInt8

_NEAR = 0.06  # shorter sides: distance from the border up to which a shape may turn there
_OUTLINES = 24  # frames from which the outline is read
_SEEN = 0.15  # fraction of the frames in which a shape must be seen: it may be away in the others
_LATE = 0.15  # fraction of the frames after which it is too late to see its first direction
_WHOLE = 0.93  # part of its usual area that a region has if nothing of it is hidden
_IN_FRONT = 0.02  # part of a shape's pixels that are well within the bar if it passes in front of it


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """A shape and where it is.

    Attributes:
        shape: What it looks like and how it moves.
        path: Its centroids (x, y) in pixels.
        found: Frames in which enough of it is visible to know.
        reach: Radius of the circle around it, in pixels.
    """

    shape: SeenShape
    path: Float[np.ndarray, "F 2"]
    found: Bool[np.ndarray, " F"]
    reach: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tracks:
    """What a video of the second style shows.

    Attributes:
        seen: The same in words.
        shapes: In the order of ``COLOURS``.
        scene: The video cut into regions; None if it shows no background of this world.
    """

    seen: Observation
    shapes: tuple[Track, ...] = ()
    scene: TexturedSegmentation | None = None


def track(frames: UInt8[np.ndarray, "F H W 3"], *, from_start: bool = True) -> Tracks:
    """Finds the background, the light and all shapes of a video of the second style, and follows them.

    Meant for at least 12 frames of at least 64 x 64 pixels; 99 of them take about 0.4 s.

    Args:
        frames: The video.
        from_start: The video begins when the scene does, so a shape that is seen late has no first direction.
    """
    scene = segment_textured(frames)
    if scene is None:
        return Tracks(seen=Observation())
    shapes = tuple(
        found
        for number in range(len(scene.colours))
        if (found := _follow(scene, number + 1, _LATE if from_start else 1.0))
    )
    seen = Observation(
        shapes=tuple(found.shape for found in shapes),
        background=scene.background,
        lighting=scene.lighting,
        bar=bool(scene.bar.any()),
    )
    return Tracks(seen=seen, shapes=shapes, scene=scene)


def leaves(shape: Track, direction: str, height: int, width: int) -> bool:
    """Whether a shape does not turn back in sight at the border that it leaves by.

    Args:
        shape: The shape.
        direction: One of ``DIRECTIONS``: where it moves to at first.
        height: Rows of the frames.
        width: Columns of the frames.
    """
    across, down = DIRECTIONS[direction]
    axis, sign = (0, across) if across else (1, down)
    here = shape.path[shape.found][:, axis]
    distance = (width, height)[axis] - here if sign > 0 else here
    near = distance < shape.reach + _NEAR * min(height, width)
    # Visits that begin and end in the video, as ranges of frames in which the shape is found.
    changes = np.flatnonzero(np.diff(near.astype(np.int8))) + 1
    visits = itertools.pairwise(changes)
    return all(distance[begin:end].min() < shape.reach / 2 for begin, end in visits if near[begin])


def _follow(scene: TexturedSegmentation, label: int, latest: float) -> Track | None:
    """The shape of that label; None if only specks below the size limit remain. ``latest``: see ``measure_motion``."""
    height, width = scene.labels.shape[1:]
    mask = scene.labels == label
    regions, copies = largest_regions(mask, min(height, width))
    if not regions.any():
        return None
    covered, free = coverage_of(scene, label), _free(scene, label)
    hidden = hidden_part(regions, free)
    edge = regions[:, [0, -1]].any((1, 2)) | regions[:, :, [0, -1]].any((1, 2))
    # Where something else is near, its edge may count as this shape: the outline is read from other frames.
    clear = np.flatnonzero(hidden + edge == 0)
    clear = clear if len(clear) else np.array([np.argmin(hidden + edge)])
    alone = covered[clear] * grow(regions[clear], 2)
    mass = centroids(alone)[1]
    some = np.linspace(0, len(clear) - 1, min(_OUTLINES, len(clear))).round().astype(int)
    kind = kind_of(moments(alone[some]))
    radius = float(np.sqrt(np.median(mass) / KINDS[kind or "circle"]))
    path, found = find_rotated(covered, free, kind or "circle", radius)
    # The drawing at all angles finds a shape that is partly hidden, but not as exactly as its centroid does, which is
    # right wherever the region is whole, whatever is near.
    areas = regions.sum((1, 2))
    whole = np.flatnonzero(found & ~edge & (areas > _WHOLE * np.quantile(areas[areas > 0], 0.9)))
    path[whole] = centroids(covered[whole] * grow(regions[whole], 2))[0]
    reach = radius * CIRCUMRADII[kind or "circle"] / 256
    return Track(
        shape=SeenShape(
            colour=scene.colours[label - 1],
            kind=kind,
            size=size_of(radius, min(height, width)),
            motion=measure_motion(path, found, reach, height, width, least_seen=_SEEN, latest=latest),
            copies=copies,
        ),
        path=path,
        found=found,
        reach=reach,
    )


def _free(scene: TexturedSegmentation, label: int) -> Bool[np.ndarray, "F H W"]:
    """Where neither another shape nor the bar is in the way."""
    mask = scene.labels == label
    inner = ~grow(~scene.bar[None], 2)
    others = cores((scene.labels != 0) & ~mask)
    if (mask & inner).sum() < _IN_FRONT * mask.sum():
        others = others | scene.bar
    return ~grow(others, 2)
