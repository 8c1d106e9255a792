"""Images and videos in: files, PIL images and arrays become RGB frames of the wanted size.

As in diffusers' ``VideoProcessor``, frames are resized with PIL's Lanczos filter to exactly the wanted size (the aspect
is not kept; matching sizes are left untouched). Frames are taken as they are stored, whatever their rate; the model was
trained on 24 frames per second.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from helios_jax.media.decoding import read_frames
from helios_jax.media.files import ClipError, damaged, existing_file
from helios_jax.media.pixels import Frames, checked_pixels, to_signed
from helios_jax.media.resizing import resize
from helios_jax.media.timeline import read_timeline
from helios_jax.typing import Float, UInt8

ImageLike = Any
"""A path, a PIL image, or an RGB array [H, W, 3] of uint8 or of floats in [0, 1]."""

VideoLike = Any
"""A path, a list of what ``ImageLike`` allows, or an array [F, H, W, 3] of uint8 or of floats in [0, 1]."""


def load_image(image: ImageLike, height: int, width: int) -> Float[np.ndarray, "{height} {width} 3"]:
    """Reads one image, resized to ``height`` x ``width``, with values in [-1, 1].

    Args:
        image: A path (its EXIF orientation is applied), a PIL image, a uint8 array [H, W, 3], or a float
            array [H, W, 3] with values in [0, 1]. Floats keep their precision. PIL images of other modes
            are converted to RGB, which drops alpha.
        height: Pixel rows wanted.
        width: Pixel columns wanted.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The file cannot be read as an image, or shape, dtype or range are not as above.
    """
    return to_signed(resize(_pixels(image), height, width))


def load_video(
    video: VideoLike, height: int, width: int, *, max_frames: int | None = None
) -> UInt8[np.ndarray, "F {height} {width} 3"] | Float[np.ndarray, "F {height} {width} 3"]:
    """Reads the frames of a video, resized to ``height`` x ``width``, in their unsigned form.

    Files are decoded one frame at a time into uint8 (0.7 MiB per frame of 384 x 640); map the pieces that
    are needed with ``to_signed`` rather than the whole video.

    Args:
        video: A path to anything FFmpeg reads (a stored rotation by a multiple of 90 degrees is applied), an
            array [F, H, W, 3] of uint8 or of floats in [0, 1], or a list of images as ``load_image`` takes.
        height: Pixel rows wanted.
        width: Pixel columns wanted.
        max_frames: Stop after this many frames; what follows is not decoded.

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
    if isinstance(video, str | os.PathLike):
        frames = _stacked(read_frames(video, 0, max_frames), height, width)
        if len(frames) == 0:
            raise ClipError(f"the video {video} holds no frames")
        return frames
    if isinstance(video, list | tuple):
        return _from_images(video[:max_frames], height, width)
    return _resized(checked_pixels(video, "[F, H, W, 3]")[:max_frames], height, width)


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


def load_ends(video: VideoLike, height: int, width: int, *, last: int) -> ClipEnds:
    """Reads the first frame of a video and its ``last`` ones, which are all that is needed to continue it.

    Only these frames of a file are decoded (and some before them, from the last key frame on), and only they are held
    in memory. Frames in between are not decoded, so damage there goes unnoticed unless the container reports it.

    Args:
        video: As for ``load_video``.
        height: Pixel rows wanted.
        width: Pixel columns wanted.
        last: Frames wanted from the end; all if the clip is shorter.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: As ``load_video``, for the frames that are read.
    """
    if isinstance(video, str | os.PathLike):
        return _file_ends(existing_file(video, "video"), height, width, last)
    frames = video if isinstance(video, list | tuple) else checked_pixels(video, "[F, H, W, 3]")
    if isinstance(frames, list | tuple):
        kept = _from_images([*frames[:1], *frames[-last:]], height, width)
    else:
        kept = np.concatenate([_resized(part, height, width) for part in (frames[:1], frames[-last:])])
    return ClipEnds(num_frames=len(frames), first=kept[:1], last=kept[1:])


def _file_ends(path: pathlib.Path, height: int, width: int, last: int) -> ClipEnds:
    timeline = read_timeline(path)
    if timeline.damaged:
        raise damaged(path, timeline.num_frames)
    if timeline.times is not None:
        count = timeline.num_frames
        tail = _stacked(read_frames(path, max(0, count - last)), height, width)
        if len(tail) == min(last, count) > 0:
            return ClipEnds(num_frames=count, first=load_video(path, height, width, max_frames=1), last=tail)
    # The packets do not give the number of frames: decode all and keep the last.
    count, first, ring = 0, None, collections.deque(maxlen=last)
    for frame in read_frames(path):
        first = frame if first is None else first
        ring.append(frame)
        count += 1
    if first is None:
        raise ClipError(f"the video {path} holds no frames")
    return ClipEnds(num_frames=count, first=_stacked([first], height, width), last=_stacked(ring, height, width))


def _stacked(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], height: int, width: int
) -> UInt8[np.ndarray, "F {height} {width} 3"]:
    """Resizes the frames of a file."""
    pixels = bytearray()  # grows in place; a list of frames and its stack would need the memory twice
    for frame in frames:
        pixels += resize(frame, height, width).tobytes()
    return np.frombuffer(pixels, np.uint8).reshape(-1, height, width, 3)


def _resized(
    frames: Frames, height: int, width: int
) -> UInt8[np.ndarray, "F2 {height} {width} 3"] | Float[np.ndarray, "F2 {height} {width} 3"]:
    """Resizes an array of frames."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([resize(frame, height, width) for frame in frames])


def _from_images(
    images: list | tuple, height: int, width: int
) -> UInt8[np.ndarray, "F {height} {width} 3"] | Float[np.ndarray, "F {height} {width} 3"]:
    """Reads and resizes a list of images."""
    frames = [resize(_pixels(image), height, width) for image in images]
    if len({frame.dtype for frame in frames}) != 1:
        raise ValueError(
            f"a video given as a list of {len(frames)} images must hold at least one, and either uint8 "
            "pixels or floats in [0, 1], not both"
        )
    return np.stack(frames)


def _pixels(image: ImageLike) -> Frames:
    """One image as RGB [H, W, 3], uint8 or float32 in [0, 1]."""
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image):
        return _rgb(image)
    if not isinstance(image, str | os.PathLike):
        return checked_pixels(image, "[H, W, 3]")
    path = existing_file(image, "image")
    try:
        with Image.open(path) as opened:
            return _rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError) as error:  # PIL reports broken PNG files as SyntaxError
        raise ValueError(f"cannot read the image {path}: {error}; save it again as PNG or JPEG") from error


def _rgb(image: Any) -> UInt8[np.ndarray, "H W 3"]:
    """A PIL image in 8-bit RGB."""
    if image.mode.startswith(("I", "F")):  # PIL would clip these to 0..255 instead of scaling them
        raise ValueError(
            f"a PIL image of mode {image.mode!r} has more than 8 bits per channel; scale its values to 0..255 "
            "and convert it to 'RGB'"
        )
    return np.asarray(image.convert("RGB"))
