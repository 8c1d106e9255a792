"""Measures of frames: colours as people see them, and the power of fine detail.

Colours are those of CIELAB (CIE 15:2018, white point D65) after the sRGB transfer function (IEC 61966-2-1). Distances
are Euclidean, as in CIE 1976: about 2 is the least that an untrained eye notices.

The power of fine detail is the power spectrum of the luma Y = 0.2126 R + 0.7152 G + 0.0722 B (BT.709, 0 to 1) in a
Hann window, summed over the frequencies above ``HIGH_BAND`` cycles per pixel. Textures have periods of 4 to 8 pixels
and lie above it.
"""

import functools

import numpy as np

from helios_jax.typing import Float, UInt8

HIGH_BAND = 0.11
"""In cycles per pixel: a period of 9 pixels, a little longer than the longest of a texture."""

_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_LINEAR = 0.04045  # up to here sRGB is linear
_CUBIC = 6 / 29  # below its cube, the cube root of CIELAB is replaced by a straight line


def cielab(colours: Float[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
    """L*, a* and b* of sRGB colours in 0 to 1; NaN stays NaN."""
    colours = np.asarray(colours, np.float64)
    linear = np.where(colours <= _LINEAR, colours / 12.92, (np.maximum(colours, 0) / 1.055 + 0.055 / 1.055) ** 2.4)
    relative = linear @ _TO_XYZ.T / _TO_XYZ.sum(1)
    roots = np.where(relative > _CUBIC**3, np.cbrt(relative), relative / (3 * _CUBIC**2) + 4 / 29)
    x, y, z = np.moveaxis(roots, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def high_band_power(frames: UInt8[np.ndarray, "F H W 3"]) -> Float[np.ndarray, " F"]:
    """The power of fine detail of each frame, per pixel."""
    height, width = frames.shape[1:3]
    window, high = _filters(height, width)
    luma = frames.astype(np.float32) @ (_LUMA / 255)
    spectrum = np.fft.rfft2((luma - luma.mean((1, 2), keepdims=True)) * window)
    return (np.square(np.abs(spectrum)) * high).sum((1, 2)) / (height * width) ** 2


@functools.lru_cache(maxsize=4)
def _filters(height: int, width: int) -> tuple[Float[np.ndarray, "H W"], Float[np.ndarray, "H columns"]]:
    """The Hann window, and weights of ``rfft2``: most of its frequencies stand for their negative as well."""
    rows, columns = (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size) for size in (height, width))
    lengths = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    weights = np.full(width // 2 + 1, 2.0)
    weights[0] = 1
    if width % 2 == 0:
        weights[-1] = 1
    return np.outer(rows, columns).astype(np.float32), (lengths > HIGH_BAND) * weights
