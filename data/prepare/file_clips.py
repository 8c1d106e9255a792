"""Clips of video files: which frames are read, and how they are cropped and resized.

As in the original implementation, a clip is cropped as its list says, then cropped around its centre to the wanted
aspect ratio, and resized by bilinear interpolation with anti-aliasing. Clips whose aspect ratio is nearer to another
published size are left out. Rates other than 24 frames per second are resampled using the frames' timestamps.
"""

import dataclasses
import pathlib
from typing import Literal

import numpy as np

from helios_jax.media.decoding import read_numbered, resampled_numbers
from helios_jax.media.files import ClipError, damaged
from helios_jax.media.resizing import PUBLISHED_SIZES, PixelSize, Target, nearest_size
from helios_jax.media.timeline import read_timeline
from helios_jax.typing import Int, UInt8

Fit = Literal["drop", "crop", "pad", "stretch"]
"""What happens to clips of another aspect."""


class LeftOutError(ClipError):
    """A rule excludes the clip, such as one about its length; nothing is wrong with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files are read.

    Attributes:
        video_fps: Frames per second that clips are resampled to; ``None``: all stored frames are taken.
        fit: "drop" leaves out clips whose aspect is nearer to another published size and crops the rest around the
            centre, as published; "crop", "pad" and "stretch" take every clip.
    """

    video_fps: float | None = 24
    fit: Fit = "drop"


AS_PUBLISHED = ReadOptions()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileClip:
    """A part of a video file; a ``Clip``.

    Attributes:
        uid: See ``Clip``.
        caption: See ``Clip``.
        stored_fps: Frames per second according to the list; 0 if unknown.
        path: The file.
        cut: First stored frame, and the one after the last; ``None``: all frames.
        crop: Columns (x0, x1) and rows (y0, y1) to keep, in pixels; ``None``: everything.
        options: How the file is read.
    """

    uid: str
    caption: str
    stored_fps: float
    path: pathlib.Path
    cut: tuple[int, int] | None = None
    crop: tuple[int, int, int, int] | None = None
    options: ReadOptions = AS_PUBLISHED

    @property
    def fps(self) -> float:
        """See ``Clip``."""
        return self.stored_fps if self.options.video_fps is None else float(self.options.video_fps)

    @property
    def identity(self) -> list[object]:
        """What decides the clip's record, as JSON."""
        return [self.uid, self.caption, self.crop, self.stored_fps]

    def aspect(self) -> float:
        """See ``Clip``; reads the first frame unless there is a crop."""
        if self.crop is not None:
            x0, x1, y0, y1 = self.crop
            return (x1 - x0) / (y1 - y0)
        first = next(read_numbered(self._existing(), np.zeros(1, np.int64)), None)
        if first is None:
            raise ClipError(f"{self.path} holds no frames")
        return first.shape[1] / first.shape[0]

    def read(self, size: PixelSize, max_frames: int) -> UInt8[np.ndarray, "F H W 3"]:
        """See ``Clip``."""
        numbers = self._numbers(self._existing(), max_frames)
        target = Target(
            height=size[0],
            width=size[1],
            fit="crop" if self.options.fit == "drop" else self.options.fit,
            filter="bilinear",
        )
        # The buffer grows in place. Stacking a list of frames would need twice the memory.
        pixels, count = bytearray(), 0
        for frame in read_numbered(self.path, numbers):
            if count == 0:
                self._check_aspect(frame, size)
            self._check_crop(frame)
            pixels += target(frame, self.crop).tobytes()
            count += 1
        if count < len(numbers):
            raise damaged(self.path, int(numbers[count]))
        return np.frombuffer(pixels, np.uint8).reshape(-1, *size, 3)

    def _existing(self) -> pathlib.Path:
        # A missing file makes one clip unusable; the job continues.
        if not self.path.is_file():
            raise ClipError(f"there is no file {self.path}")
        return self.path

    def _numbers(self, path: pathlib.Path, max_frames: int) -> Int[np.ndarray, " F"]:
        """Numbers of the stored frames to take."""
        timeline = read_timeline(path)
        start, stop = self.cut or (0, timeline.num_frames)
        if timeline.damaged and stop > timeline.num_frames:
            raise damaged(path, timeline.num_frames)
        if stop > timeline.num_frames:
            raise ClipError(f"{path} ends after {timeline.num_frames} frames, the cut is {[start, stop]}")
        numbers = resampled_numbers(path, timeline.part(start, stop), self.options.video_fps)[:max_frames] + start
        if timeline.damaged and self.cut is None and len(numbers) < max_frames:
            raise damaged(path, timeline.num_frames)  # damage after the last frame that is wanted does no harm
        return numbers

    def _check_crop(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        rows, columns = frame.shape[:2]
        if self.crop is not None and (self.crop[1] > columns or self.crop[3] > rows):
            crop = list(self.crop)
            raise ClipError(f"{self.path} has frames of {rows} x {columns}, the crop [x0, x1, y0, y1] is {crop}")

    def _check_aspect(self, frame: UInt8[np.ndarray, "H W 3"], size: PixelSize) -> None:
        if self.options.fit != "drop":
            return
        x0, x1, y0, y1 = self.crop or (0, frame.shape[1], 0, frame.shape[0])
        nearest = nearest_size((x1 - x0) / (y1 - y0), [size, *PUBLISHED_SIZES])
        if nearest != size:
            raise LeftOutError(
                f"its aspect, {y1 - y0}x{x1 - x0}, is nearer to {nearest[0]}x{nearest[1]} than to {size[0]}x{size[1]}; "
                "to use it, pass --fit=crop, pad or stretch"
            )
