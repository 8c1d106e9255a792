"""Images and videos in: files, PIL images and arrays become RGB frames of the wanted size.

As in diffusers' ``VideoProcessor``, frames are resized with PIL's Lanczos filter to exactly the wanted size; unless
``fit`` says otherwise the aspect is not kept. Matching sizes are left untouched. The model was trained on 24 frames per
second: ``fps`` brings videos of other rates to that.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from helios_jax.media.decoding import count_frames, read_frames, read_numbered, resampled_numbers
from helios_jax.media.files import ClipError, damaged
from helios_jax.media.fitting import Fit
from helios_jax.media.images import ImageLike, image_pixels
from helios_jax.media.pixels import Frames, checked_pixels, to_signed
from helios_jax.media.resizing import Target
from helios_jax.media.timeline import read_timeline
from helios_jax.typing import Float, Int, UInt8
from helios_jax.user_input import existing_file

VideoLike = Any
"""A path, a list of what ``ImageLike`` allows, or an array [F, H, W, 3] of uint8 or of floats in [0, 1]."""


ResizedFrames = UInt8[np.ndarray, "F2 H2 W2 3"] | Float[np.ndarray, "F2 H2 W2 3"]


def load_image(
    image: ImageLike, height: int, width: int, *, fit: Fit = "stretch"
) -> Float[np.ndarray, "{height} {width} 3"]:
    """Reads one image, resized to ``height`` x ``width``, with values in [-1, 1].

    Args:
        image: A path, a PIL image, a uint8 array [H, W, 3], or a float array [H, W, 3] with values in [0, 1]. Floats
            keep their precision. Files and PIL images are turned by their EXIF orientation, and transparent ones are
            composited on white.
        height: Pixel rows wanted.
        width: Pixel columns wanted.
        fit: What happens to an image of another aspect: "stretch" (as published), "crop" around the centre, or "pad"
            with black bars.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The file cannot be read as an image, or shape, dtype or range are not as above.
    """
    return to_signed(Target(height=height, width=width, fit=fit)(image_pixels(image)))


def load_video(
    video: VideoLike,
    height: int,
    width: int,
    *,
    max_frames: int | None = None,
    fps: float | Fraction | None = None,
    fit: Fit = "stretch",
) -> UInt8[np.ndarray, "F {height} {width} 3"] | Float[np.ndarray, "F {height} {width} 3"]:
    """Reads the frames of a video, resized to ``height`` x ``width``, in their unsigned form.

    Files are decoded one frame at a time into uint8 (0.7 MiB per frame of 384 x 640); map the pieces that
    are needed with ``to_signed`` rather than the whole video.

    Args:
        video: A path to anything FFmpeg reads (stored rotations by multiples of 90 degrees and reflections are
            applied), an array [F, H, W, 3] of uint8 or of floats in [0, 1], or a list of what ``load_image`` takes.
        height: Pixel rows wanted.
        width: Pixel columns wanted.
        max_frames: Stop after this many frames; what follows is not decoded.
        fps: Resample files to this rate, see ``read_frames``; ``None``: all stored frames.
        fit: What happens to frames of another aspect, see ``load_image``.

    Returns:
        uint8 frames, or float32 in [0, 1] if floats were given. An array that already has the right size
        and dtype is returned as it is.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The file is not a video, holds no frame, or is damaged before ``max_frames``; or shape,
            dtype or range of an array are not as above.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    target = Target(height=height, width=width, fit=fit)
    if isinstance(video, str | os.PathLike):
        frames = _stacked(read_frames(video, 0, max_frames, fps=fps), target)
        if len(frames) == 0:
            raise ClipError(f"the video {video} holds no frames")
        return frames
    if isinstance(video, list | tuple):
        return _from_images(video[:max_frames], target)
    return _resized(checked_pixels(video, "[F, H, W, 3]")[:max_frames], target)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClipEnds:
    """The first frame of a clip and its last ones, used instead of the whole clip.

    ``len`` and slices count the frames of the whole clip, as if it were an array [F, H, W, 3]; slices of frames
    that were not kept raise IndexError.

    Attributes:
        num_frames: Frames of the whole clip.
        first: [1, H, W, 3].
        last: The last frames.
    """

    num_frames: int
    first: UInt8[np.ndarray, "1 H W 3"] | Float[np.ndarray, "1 H W 3"]
    last: UInt8[np.ndarray, "last H W 3"] | Float[np.ndarray, "last H W 3"]

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, frames: slice) -> Frames:
        start, stop, step = frames.indices(self.num_frames)
        before = self.num_frames - len(self.last)
        if start >= before:
            return self.last[start - before : max(start, stop) - before : step]
        if stop <= 1:
            return self.first[start:stop:step]
        raise IndexError(f"frames {start} to {stop} of a clip of which 0 and {before} to {self.num_frames} are kept")


def load_ends(
    video: VideoLike,
    height: int,
    width: int,
    *,
    last: int,
    fps: float | Fraction | None = None,
    fit: Fit = "stretch",
) -> ClipEnds:
    """Reads the first frame of a video and its ``last`` ones, which are all that is needed to continue it.

    Only these frames of a file are decoded (and some before them, from the last key frame on), and only they are held
    in memory. Frames in between are not decoded, so damage there goes unnoticed unless the container reports it.

    Args:
        video: As for ``load_video``.
        height: Pixel rows wanted.
        width: Pixel columns wanted.
        last: Frames wanted from the end; all if the clip is shorter.
        fps: Resample files to this rate first, see ``read_frames``; ``None``: all stored frames.
        fit: What happens to frames of another aspect, see ``load_image``.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: As ``load_video``, for the frames that are read.
    """
    target = Target(height=height, width=width, fit=fit)
    if isinstance(video, str | os.PathLike):
        return _file_ends(existing_file(video, "video"), target, last, fps)
    frames = video if isinstance(video, list | tuple) else checked_pixels(video, "[F, H, W, 3]")
    if isinstance(frames, list | tuple):
        kept = _from_images([*frames[:1], *frames[-last:]], target)
    else:
        kept = np.concatenate([_resized(part, target) for part in (frames[:1], frames[-last:])])
    return ClipEnds(num_frames=len(frames), first=kept[:1], last=kept[1:])


def _file_ends(path: pathlib.Path, target: Target, last: int, fps: float | Fraction | None) -> ClipEnds:
    timeline = read_timeline(path)
    if timeline.damaged:
        raise damaged(path, timeline.num_frames)
    if timeline.times is not None:
        ends = _frames_at_ends(path, resampled_numbers(path, timeline, fps), target, last)
        if ends is not None:
            return ends
    # The packets do not give the number of frames.
    count = count_frames(path)
    times = None if timeline.times is None else timeline.times[:count]
    timeline = dataclasses.replace(timeline, num_frames=count, times=times)
    ends = _frames_at_ends(path, resampled_numbers(path, timeline, fps), target, last)
    if ends is None:
        raise ClipError(f"the video {path} holds no frames, or another number of them each time it is read")
    return ends


def _frames_at_ends(path: pathlib.Path, numbers: Int[np.ndarray, " F"], target: Target, last: int) -> ClipEnds | None:
    """The ends of the film that consists of the frames ``numbers``; ``None`` if fewer can be decoded."""
    wanted = numbers[-last:]
    tail = _stacked(read_numbered(path, wanted), target)
    first = _stacked(read_numbered(path, numbers[:1]), target)
    if len(wanted) == 0 or len(tail) < len(wanted) or len(first) == 0:
        return None
    return ClipEnds(num_frames=len(numbers), first=first, last=tail)


def _stacked(frames: Iterable[UInt8[np.ndarray, "H W 3"]], target: Target) -> UInt8[np.ndarray, "F H2 W2 3"]:
    """Resizes the frames of a file."""
    pixels = bytearray()  # grows in place; a list of frames and its stack would need the memory twice
    for frame in frames:
        pixels += target(frame).tobytes()
    return np.frombuffer(pixels, np.uint8).reshape(-1, target.height, target.width, 3)


def _resized(frames: Frames, target: Target) -> ResizedFrames:
    """Resizes an array of frames."""
    if frames.shape[1:3] == (target.height, target.width):
        return frames
    return np.stack([target(frame) for frame in frames])


def _from_images(images: list | tuple, target: Target) -> ResizedFrames:
    """Reads and resizes a list of images."""
    frames = [target(image_pixels(image)) for image in images]
    if len({frame.dtype for frame in frames}) != 1:
        raise ValueError(
            f"a video given as a list of {len(frames)} images must hold at least one, and either uint8 "
            "pixels or floats in [0, 1], not both"
        )
    return np.stack(frames)
