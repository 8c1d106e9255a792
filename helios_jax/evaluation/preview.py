"""Frames of a measured video for the report: 13 of them side by side, from the first to the last."""

from pathlib import Path

import numpy as np

from helios_jax.evaluation.metrics import VideoInfo
from helios_jax.typing import Int, UInt8

COUNT = 13
"""Frames that are shown."""

_WIDEST = 160
"""Pixel columns of a frame that is shown; larger frames are reduced by a whole number."""

_SMALL = 4 << 20
"""Bytes of the largest video of which all frames are kept."""


def shown_frames(num_frames: int) -> Int[np.ndarray, " frames"]:
    """Numbers of the frames that are shown, the first and the last included."""
    return np.linspace(0, num_frames - 1, COUNT).round().astype(int)


class Preview:
    """Collects frames of a video. Of small videos, such as those of the moving shapes world, it keeps all of them."""

    def __init__(self, video: VideoInfo) -> None:
        self._wanted = shown_frames(video.num_frames)
        self._stride = -(-video.width // _WIDEST)
        self._tiles: list[np.ndarray] = []
        small = 3 * video.num_frames * video.height * video.width <= _SMALL
        self._all: list[np.ndarray] | None = [] if small else None
        self._seen = 0

    def update(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        """Takes the next chunk."""
        here = self._wanted[(self._wanted >= self._seen) & (self._wanted < self._seen + len(frames))] - self._seen
        self._tiles += [frames[n, :: self._stride, :: self._stride].copy() for n in here]
        if self._all is not None:
            self._all.append(frames.copy())
        self._seen += len(frames)

    def save(self, file: Path) -> None:
        """Writes the frames next to each other as PNG and, of a small video, all of them as NumPy array."""
        from PIL import Image

        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(self._tiles, axis=1)).save(file, optimize=True)
        if self._all is not None:
            np.savez_compressed(file.with_suffix(".npz"), frames=np.concatenate(self._all))


def read_small(file: Path) -> UInt8[np.ndarray, "F H W 3"] | None:
    """All frames of a small video, from the file that ``Preview.save`` writes next to its PNG; ``None`` if large."""
    file = file.with_suffix(".npz")
    if not file.is_file():
        return None
    with np.load(file) as arrays:
        return arrays["frames"]


def read_tiles(file: Path) -> UInt8[np.ndarray, "13 H W 3"]:
    """The frames that are shown of a video, from its PNG."""
    from PIL import Image

    with Image.open(file) as image:
        strip = np.asarray(image.convert("RGB"))
    return np.stack(np.split(strip, COUNT, axis=1))
