"""Image files and PIL images as RGB pixels."""

import os
import warnings
from typing import Any

import numpy as np

from helios_jax._warnings import warn_user
from helios_jax.media.pixels import Frames, checked_pixels
from helios_jax.typing import UInt8
from helios_jax.user_input import existing_file

ImageLike = Any
"""A path, a PIL image, or an RGB array [H, W, 3] of uint8 or of floats in [0, 1]."""

MAX_IMAGE_PIXELS = 1 << 27
"""Largest image that is read, 16384 x 8192; a small file can announce an image that does not fit into memory."""

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "TGA", "ICO")
"""Formats that are read. Pillow's readers of other formats start programs (EPS) or read other files (FPX, IM)."""


def image_pixels(image: ImageLike) -> Frames:
    """One image as RGB [H, W, 3], uint8 or float32 in [0, 1].

    The EXIF orientation of files and PIL images is applied. Transparent images are composited on white. 16-bit grey
    images are scaled to 8 bits. Of an animation the first picture is used, with a warning.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The file cannot be read as an image, it is too large, or shape, dtype or range are not as above.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        return _rgb(image)
    if not isinstance(image, str | os.PathLike):
        return checked_pixels(image, "[H, W, 3]")
    path = existing_file(image, "image")
    Image.init()
    try:
        with warnings.catch_warnings():
            # MAX_IMAGE_PIXELS is checked below; Pillow's other warnings are about broken metadata.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as opened:
                _check_size(opened, path)
                opened.load()
                pixels, animated = _rgb(opened), getattr(opened, "is_animated", False) and opened.format != "MPO"
    except _TooLargeError as error:
        raise ValueError(str(error)) from None
    except Image.UnidentifiedImageError:
        kinds = "PNG, JPEG, WebP, AVIF, TIFF, BMP or GIF"
        raise ValueError(f"cannot read the image {path}: it is not {kinds}; save it as PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise ValueError(f"the image {path} is too large: at most {MAX_IMAGE_PIXELS} pixels are read") from None
    except Exception as error:  # Pillow's readers raise exceptions of many types for broken files.
        reason = str(error) or type(error).__name__
        raise ValueError(f"cannot read the image {path}: {reason}; save it again as PNG or JPEG") from error
    if animated:
        warn_user(f"the image {path} is animated; only its first picture is used")
    return pixels


class _TooLargeError(Exception):
    """An image has more pixels than are read."""


def _check_size(image: Any, path: Any) -> None:
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise _TooLargeError(
            f"the image {path} is too large: {width} x {height}; at most {MAX_IMAGE_PIXELS} pixels are read"
        )


def _rgb(image: Any) -> UInt8[np.ndarray, "H W 3"]:
    """A PIL image in 8-bit RGB, upright and opaque."""
    from PIL import Image, ImageOps

    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64) / 257
        image = _with_orientation(Image.fromarray(np.rint(grey).astype(np.uint8)), image)
    elif image.mode.startswith(("I", "F")):  # PIL would clip these to 0..255 instead of scaling them
        raise ValueError(
            f"an image of mode {image.mode!r} has more than 8 bits per channel; scale its values to 0..255 and convert "
            "it to 'RGB'"
        )
    image = ImageOps.exif_transpose(image)
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        # Pillow cannot convert La to RGBA directly.
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _with_orientation(image: Any, source: Any) -> Any:
    """``image`` with the EXIF orientation of ``source``."""
    image.getexif()[0x0112] = source.getexif().get(0x0112, 1)
    return image
