"""The geometry of frames: crops, aspects, and resizing with PIL's filters."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from helios_jax.media.fitting import Fit, check_fit
from helios_jax.media.pixels import Frames
from helios_jax.typing import Float, UInt8

PixelSize = tuple[int, int]
"""Pixel rows and columns."""

Box = tuple[float, float, float, float]
"""(left, upper, right, lower) in pixels, as PIL writes boxes."""


Filter = Literal["lanczos", "bilinear"]
"""A filter of PIL; both widen their support when shrinking, which prevents aliasing."""


def resize(
    frame: Frames, height: int, width: int, box: Box | None = None, *, filter: Filter = "lanczos"
) -> UInt8[np.ndarray, "{height} {width} 3"] | Float[np.ndarray, "{height} {width} 3"]:
    """Resizes one frame, or a part of it, with one of PIL's filters; the aspect is not kept.

    Args:
        frame: [H, W, 3], uint8 or floats in [0, 1].
        height: Pixel rows wanted.
        width: Pixel columns wanted.
        box: The part to use; everything by default. It need not consist of whole pixels.
        filter: The filter.

    Returns:
        An array of the dtype of ``frame``; ``frame`` itself if there is nothing to change.
    """
    from PIL import Image

    whole = (0, 0, frame.shape[1], frame.shape[0])
    if frame.shape[:2] == (height, width) and box in (None, whole):
        return frame
    size, method = (width, height), Image.Resampling[filter.upper()]
    if frame.dtype == np.uint8:
        return np.asarray(Image.fromarray(frame).resize(size, method, box=box))
    # PIL resizes floats one channel at a time.
    channels = [Image.fromarray(np.ascontiguousarray(frame[..., c])) for c in range(3)]
    resized = np.stack([np.asarray(channel.resize(size, method, box=box)) for channel in channels], axis=-1)
    return resized.clip(0, 1)  # Lanczos overshoots at edges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The size that frames are resized to, and how.

    Attributes:
        height: Pixel rows.
        width: Pixel columns.
        fit: What happens to frames of another aspect.
        filter: The filter that resizes.
    """

    height: int
    width: int
    fit: Fit = "stretch"
    filter: Filter = "lanczos"

    def __post_init__(self) -> None:
        check_fit(self.fit)

    def __call__(
        self, frame: Frames, crop: tuple[int, int, int, int] | None = None
    ) -> UInt8[np.ndarray, "H2 W2 3"] | Float[np.ndarray, "H2 W2 3"]:
        """The frame, or its part ``crop`` = (x0, x1, y0, y1), in the target size; dtypes as for ``resize``."""
        x0, x1, y0, y1 = crop or (0, frame.shape[1], 0, frame.shape[0])
        size = (self.height, self.width)
        if self.fit == "crop":
            return resize(frame, *size, centre_crop((x0, x1, y0, y1), size), filter=self.filter)
        if self.fit == "stretch":
            return resize(frame, *size, (x0, y0, x1, y1), filter=self.filter)
        scale = min(self.height / (y1 - y0), self.width / (x1 - x0))
        rows, columns = (max(1, round(scale * side)) for side in (y1 - y0, x1 - x0))
        inner = resize(frame, rows, columns, (x0, y0, x1, y1), filter=self.filter)
        above, left = (self.height - rows) // 2, (self.width - columns) // 2
        after = (self.height - rows - above, self.width - columns - left)
        return np.pad(inner, ((above, after[0]), (left, after[1]), (0, 0)))


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


_LANDSCAPE = ((384, 640), (384, 768), (320, 768), (512, 768), (448, 576))

PUBLISHED_SIZES: tuple[PixelSize, ...] = (*_LANDSCAPE, *((w, h) for h, w in _LANDSCAPE), (512, 512))
"""Sizes that the clips of the published training set are sorted by (PKU-YuanGroup/Helios, ``helios/dataset``)."""


def nearest_size(aspect: float | None, sizes: Sequence[PixelSize]) -> PixelSize:
    """The one of ``sizes`` with an aspect that differs from width / height = ``aspect`` by the smallest factor.

    Without an aspect, the first of ``sizes``.
    """
    if aspect is None:
        return sizes[0]
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0] / aspect)))
