"""How far shapes of the moving shapes world move, from the pixels of a video."""

import numpy as np

from helios_jax.data.moving_shapes.segmentation import MIN_AREA, segment
from helios_jax.typing import UInt8

_LAG = 6  # frames between two positions: centres of regions of whole pixels are not exact
_WHOLE = 0.8  # of a shape's typical area: what is smaller may be partly covered, which moves its centre


def displacement(frames: UInt8[np.ndarray, "F H W 3"]) -> float:
    """The distance that shapes move per frame, in shorter sides of the frame.

    It is the median over frames, so neither bounces nor covered shapes count, and the mean over shapes; NaN if no shape
    is seen whole in two frames that are six apart.
    """
    scene = segment(frames)
    if scene is None:
        return float("nan")
    side = min(frames.shape[1:3])
    moves = []
    for label in range(1, len(scene.colours) + 1):
        region = scene.labels == label
        areas = region.sum((1, 2))
        whole = areas > max(MIN_AREA * side**2, _WHOLE * np.median(areas))
        centres = np.full((len(region), 2), np.nan)
        for frame in np.flatnonzero(whole):
            centres[frame] = np.argwhere(region[frame]).mean(0)
        steps = np.linalg.norm(centres[_LAG:] - centres[:-_LAG], axis=1) / _LAG
        if np.isfinite(steps).any():
            moves.append(float(np.nanmedian(steps)) / side)
    return float(np.mean(moves)) if moves else float("nan")
