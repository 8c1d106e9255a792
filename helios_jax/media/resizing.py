"""The geometry of frames: crops, aspects, and resizing with PIL's Lanczos filter."""

import math
from collections.abc import Sequence

import numpy as np

from helios_jax.media.pixels import Frames
from helios_jax.typing import Float, UInt8

PixelSize = tuple[int, int]
"""Pixel rows and columns."""

Box = tuple[float, float, float, float]
"""(left, upper, right, lower) in pixels, as PIL writes boxes."""


def resize(
    frame: Frames, height: int, width: int, box: Box | None = None
) -> UInt8[np.ndarray, "{height} {width} 3"] | Float[np.ndarray, "{height} {width} 3"]:
    """Resizes one frame, or a part of it, with PIL's Lanczos filter; the aspect is not kept.

    Args:
        frame: [H, W, 3], uint8 or floats in [0, 1].
        height: Pixel rows wanted.
        width: Pixel columns wanted.
        box: The part to use; everything by default. It need not consist of whole pixels.

    Returns:
        An array of the dtype of ``frame``; ``frame`` itself if there is nothing to change.
    """
    from PIL import Image

    whole = (0, 0, frame.shape[1], frame.shape[0])
    if frame.shape[:2] == (height, width) and box in (None, whole):
        return frame
    size, lanczos = (width, height), Image.Resampling.LANCZOS
    if frame.dtype == np.uint8:
        return np.asarray(Image.fromarray(frame).resize(size, lanczos, box=box))
    # PIL resizes floats one channel at a time.
    channels = [Image.fromarray(np.ascontiguousarray(frame[..., c])) for c in range(3)]
    resized = np.stack([np.asarray(channel.resize(size, lanczos, box=box)) for channel in channels], axis=-1)
    return resized.clip(0, 1)  # Lanczos overshoots at edges


def centre_crop(crop: tuple[int, int, int, int], size: PixelSize) -> Box:
    """The largest box of the aspect of ``size`` in the middle of ``crop``.

    Args:
        crop: (x0, x1, y0, y1), as lists of clips write crops.
        size: (rows, columns).
    """
    x0, x1, y0, y1 = crop
    scale = min((y1 - y0) / size[0], (x1 - x0) / size[1])
    left = (x0 + x1 - scale * size[1]) / 2
    upper = (y0 + y1 - scale * size[0]) / 2
    return left, upper, left + scale * size[1], upper + scale * size[0]


def nearest_size(aspect: float | None, sizes: Sequence[PixelSize]) -> PixelSize:
    """The one of ``sizes`` with an aspect that differs from width / height = ``aspect`` by the smallest factor.

    Without an aspect, the first of ``sizes``.
    """
    if aspect is None:
        return sizes[0]
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0] / aspect)))
