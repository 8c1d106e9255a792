"""How far shapes of the moving shapes world move, from the pixels of a video."""

from collections.abc import Sequence

import numpy as np

from helios_jax.data.moving_shapes.segmentation import MIN_AREA, segment
from helios_jax.data.moving_shapes.styles import Style
from helios_jax.data.moving_shapes.textured_observation import track
from helios_jax.typing import Float, UInt8

_LAG = 6  # frames between two positions: centres of regions of whole pixels are not exact
_WHOLE = 0.8  # of a shape's typical area: what is smaller may be partly covered, which moves its centre


def displacement(frames: UInt8[np.ndarray, "F H W 3"], style: Style = "plain") -> float:
    """The distance that shapes move per frame, in shorter sides of the frame.

    It is the median over frames, so neither bounces nor covered shapes count, and the mean over shapes; NaN if no shape
    is seen whole in two frames that are six apart. ``style`` is that of the scenes.
    """
    if style == "textured":
        side = min(frames.shape[1:3])
        paths = [np.where(one.found[:, None], one.path, np.nan) for one in track(frames, from_start=False).shapes]
        return _mean_move(paths, side)
    scene = segment(frames)
    if scene is None:
        return float("nan")
    side = min(frames.shape[1:3])
    paths = []
    for label in range(1, len(scene.colours) + 1):
        region = scene.labels == label
        areas = region.sum((1, 2))
        whole = areas > max(MIN_AREA * side**2, _WHOLE * np.median(areas))
        centres = np.full((len(region), 2), np.nan)
        for frame in np.flatnonzero(whole):
            centres[frame] = np.argwhere(region[frame]).mean(0)
        paths.append(centres)
    return _mean_move(paths, side)


def _mean_move(paths: Sequence[Float[np.ndarray, "F 2"]], side: int) -> float:
    """The mean over paths of their median distance per frame, in shorter sides."""
    steps = [np.linalg.norm(path[_LAG:] - path[:-_LAG], axis=1) / _LAG for path in paths]
    moves = [float(np.nanmedian(one)) / side for one in steps if np.isfinite(one).any()]
    return float(np.mean(moves)) if moves else float("nan")
