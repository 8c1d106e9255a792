"""Statistics of frames that show drift: brightness, contrast, saturation, sharpness and high frequencies, in NumPy.

Colours R, G, B are in [0, 1], and the luma of a pixel is Y = 0.2126 R + 0.7152 G + 0.0722 B (BT.709). Of a chunk,

    brightness    mean Y                                                                                  (1)
    contrast      mean over frames of the standard deviation of Y                                         (2)
    saturation    mean of max(R, G, B) - min(R, G, B)                                                     (3)
    yellow        mean of (R + G) / 2 - B, positive for a yellow tint                                     (4)
    sharpness     mean over frames of the rms of the Laplacian of Y, of four neighbours                   (5)
    high_band     mean over frames of the part of the spatial power of Y above half the Nyquist frequency (6)
    motion        mean of |Y - Y of the frame before|                                                     (7)
    border_jump   mean |Y of the first frame - Y of the last frame of the chunk before|, less the mean of (7)
                  of both chunks: 0 where a border looks like any other pair of frames                    (8)

For (6), the mean of Y is subtracted, a Hann window avoids the leakage of the frame's edges, and a frequency counts as
high if its length is above a quarter of a cycle per pixel; 0 for a frame without any contrast.
"""

import functools
from collections.abc import Sequence

import numpy as np

from helios_jax.typing import Float, UInt8

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)

STATISTICS = ("brightness", "contrast", "saturation", "yellow", "sharpness", "high_band", "motion", "border_jump")
"""The names, in the order above."""

PerChunk = dict[str, Float[np.ndarray, " chunks"]]
"""Values of every chunk of a video, by statistic."""

HALF_NYQUIST = 0.25
"""In cycles per pixel."""

_FLAT = 1e-10
"""Spectral power per pixel below which a frame has no contrast: that of rounding errors in fp32."""


def luma(frames: UInt8[np.ndarray, "F H W 3"]) -> Float[np.ndarray, "F H W"]:
    """Y of every pixel."""
    return frames.astype(np.float32) @ (LUMA / 255)


def chunk_statistics(frames: UInt8[np.ndarray, "F H W 3"], chunk_frames: int) -> PerChunk:
    """Every statistic of every chunk of a video.

    Args:
        frames: The video; its last chunk may be shorter than the others.
        chunk_frames: Pixel frames of a chunk.

    Returns:
        Values by name. ``border_jump`` of the first chunk is NaN, and so is ``motion`` of a chunk of one frame.

    Raises:
        ValueError: There is no frame.
    """
    if len(frames) == 0:
        raise ValueError("a video without frames has no statistics")
    streamed = StreamedStatistics()
    for start in range(0, len(frames), chunk_frames):
        streamed.update(frames[start : start + chunk_frames])
    return streamed.result()


class StreamedStatistics:
    """``chunk_statistics`` of a video whose chunks come one after the other."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []
        self._last: np.ndarray | None = None

    def update(self, chunk: UInt8[np.ndarray, "F H W 3"]) -> None:
        """Takes the next chunk."""
        y = luma(chunk)
        row = _statistics(chunk, y)
        row["border_jump"] = np.nan
        if self._last is not None:
            inside = [value for value in (self._rows[-1]["motion"], row["motion"]) if not np.isnan(value)]
            row["border_jump"] = float(np.abs(y[0] - self._last).mean()) - (float(np.mean(inside)) if inside else 0.0)
        self._last = y[-1]
        self._rows.append(row)

    def result(self) -> PerChunk:
        """The values of the chunks so far."""
        return {name: np.array([row[name] for row in self._rows]) for name in STATISTICS}


def mean_statistics(videos: Sequence[PerChunk]) -> PerChunk:
    """The means over videos of ``chunk_statistics``; videos must have the same number of chunks."""
    return {name: np.mean([video[name] for video in videos], axis=0) for name in STATISTICS}


def drift(values: Float[np.ndarray, " chunks"]) -> float:
    """The last chunk's value less that of the first one that has a value; NaN if there are no two of them."""
    known = values[~np.isnan(values)]
    return float(known[-1] - known[0]) if len(known) > 1 else float("nan")


def sharpness(y: Float[np.ndarray, "F H W"]) -> float:
    """Equation (5)."""
    return float(sharpness_of_frames(y).mean())


def sharpness_of_frames(y: Float[np.ndarray, "F H W"]) -> Float[np.ndarray, " F"]:
    """The rms of the Laplacian of each frame, of the pixels that have all four neighbours."""
    centre = y[:, 1:-1, 1:-1]
    laplacian = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * centre
    return np.sqrt(np.square(laplacian).mean((1, 2)))


def high_band(y: Float[np.ndarray, "F H W"]) -> float:
    """Equation (6)."""
    window, high = _filters(*y.shape[1:])
    centred = y - y.mean((1, 2), keepdims=True)
    power = np.square(np.abs(np.fft.fft2(centred * window)))
    total = power.sum((1, 2))
    above = (power * high).sum((1, 2))
    flat = total < _FLAT * y[0].size ** 2
    return float(np.where(flat, 0.0, above / np.where(flat, 1.0, total)).mean())


def _statistics(frames: UInt8[np.ndarray, "F H W 3"], y: Float[np.ndarray, "F H W"]) -> dict[str, float]:
    colours = frames.astype(np.float32) / 255
    return {
        "brightness": float(y.mean()),
        "contrast": float(y.std((1, 2)).mean()),
        "saturation": float((colours.max(-1) - colours.min(-1)).mean()),
        "yellow": float((colours[..., :2].mean(-1) - colours[..., 2]).mean()),
        "sharpness": sharpness(y),
        "high_band": high_band(y),
        "motion": float(np.abs(np.diff(y, axis=0)).mean()) if len(y) > 1 else float("nan"),
    }


@functools.lru_cache(maxsize=4)
def _filters(height: int, width: int) -> tuple[Float[np.ndarray, "H W"], Float[np.ndarray, "H W"]]:
    """The Hann window, and 1 at high frequencies."""
    rows, columns = (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size) for size in (height, width))
    lengths = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    return np.outer(rows, columns).astype(np.float32), (lengths > HALF_NYQUIST).astype(np.float32)
