"""Pixels as arrays: the two unsigned forms, the signed one that the VAE takes, and checks of what users pass.

Pixels are mapped to the VAE's range, as in diffusers' ``VideoProcessor``, by

    x = 2 u - 1,   u = pixel / 255 for uint8, u = value for floats in [0, 1].            (1)
"""

from typing import Any

import numpy as np

from helios_jax.typing import AnyArray, Float, UInt8

Frames = UInt8[np.ndarray, "*F H W 3"] | Float[np.ndarray, "*F H W 3"]
"""Unsigned RGB pixels: uint8, or float32 in [0, 1]."""


def to_signed(frames: Frames) -> Float[np.ndarray, "*F H W 3"]:
    """Maps unsigned pixels to float32 in [-1, 1] by (1), in host memory."""
    unsigned = frames.astype(np.float32) / np.float32(255) if frames.dtype == np.uint8 else frames
    return np.float32(2) * unsigned - np.float32(1)


def uint8_frames(frames: AnyArray) -> UInt8[np.ndarray, "F H W 3"]:
    """``frames`` in host memory. Raises ValueError unless they are uint8 of shape [F, H, W, 3]."""
    checked = checked_pixels(frames, "[F, H, W, 3]")
    if checked.dtype != np.uint8:
        raise ValueError(f"frames to be written must be uint8, got {checked.dtype}; scale them to 0..255 and round")
    return checked


def checked_pixels(array: Any, layout: str) -> Frames:
    """The array as uint8 or float32.

    Args:
        array: Anything that numpy can convert to an array.
        layout: The shape that is needed, "[H, W, 3]" or "[F, H, W, 3]".

    Raises:
        ValueError: Another shape, a dtype that is neither uint8 nor floating point, or floats outside [0, 1].
    """
    given, array = type(array).__name__, np.asarray(array)
    if array.dtype.kind not in "fuib":
        raise ValueError(f"got {given}, need an array of pixels {layout}")
    if array.ndim != layout.count(",") + 1 or array.shape[-1] != 3 or array.size == 0:
        raise ValueError(
            f"got an array of shape {list(array.shape)}, need {layout}: RGB with the channels last, one "
            f"{'image' if layout.count(',') == 2 else 'video'} without a batch axis"
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ValueError(f"got an array of {array.dtype}, need uint8, or float32 with values in [0, 1]")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(
            f"float pixels must lie in [0, 1], got {low} .. {high} in an array of shape {list(array.shape)}; "
            "map [-1, 1] by (x + 1) / 2, and give 0 .. 255 as uint8"
        )
    return array.astype(np.float32, copy=False)


def enlargement(height: int, width: int) -> int:
    """The whole factor that enlarges small frames for people, to a longer side of up to 256 pixels; 1 for others."""
    return max(1, 256 // max(height, width))
