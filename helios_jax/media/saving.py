"""Saving the frames of a finished video in one call."""

import pathlib
from fractions import Fraction
from typing import Any

import numpy as np

from helios_jax.media.pixels import checked_pixels
from helios_jax.media.video_writer import VideoWriter
from helios_jax.typing import Path

_FRAMES_PER_WRITE = 240
"""Frames per write. Encoded frames are held in memory until a write ends; each write begins with a key frame."""


def save_video(
    path: Path, frames: Any, fps: float | Fraction = 24, *, crf: int = 18, overwrite: bool = False, enlarge: int = 1
) -> pathlib.Path:
    """Saves one video as H.264 in mp4.

        save_video("fox.mp4", out.frames[0])

    Args:
        path: The file, ending in ``.mp4``; ``~`` is expanded and its folder is created.
        frames: An array (or list of arrays) [F, H, W, 3], uint8, or floats in [0, 1], which are rounded to the nearest
            of 256 levels; height and width must be even.
        fps: Frames per second; 29.97 is 30000/1001.
        crf: Constant rate factor of x264, 0 (largest file) to 51; 18 is visually lossless.
        overwrite: Replace an existing file if this library wrote it; other files are never replaced.
        enlarge: Whole factor by which frames are enlarged, without blur, for small videos.

    Returns:
        The path of the file.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is off, or it was not written by this library.
        ValueError: Shape, dtype or range of the frames, the ending of the path, ``fps``, ``crf`` or ``enlarge`` are not
            as above.
        OSError: The file cannot be written.
    """
    shape = np.shape(frames)
    if len(shape) == 5:
        raise ValueError(
            f"frames of shape {list(shape)} are a batch of {shape[0]} videos: save one at a time, frames[0]"
        )
    pixels = checked_pixels(frames, "[F, H, W, 3]")
    with VideoWriter(path, fps=fps, crf=crf, overwrite=overwrite, enlarge=enlarge) as writer:
        for start in range(0, len(pixels), _FRAMES_PER_WRITE):
            writer.write(_uint8(pixels[start : start + _FRAMES_PER_WRITE]))
    return writer.path


def _uint8(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels * np.float32(255)).astype(np.uint8)
