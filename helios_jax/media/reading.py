"""Images and videos in: files, PIL images and arrays become RGB frames of the wanted size.

As in diffusers' ``VideoProcessor``, frames are resized with PIL's Lanczos filter to exactly the wanted
size (the aspect is not kept; matching sizes are left untouched) and mapped to the VAE's range by

    x = 2 u - 1,   u = pixel / 255 for uint8, u = value for floats in [0, 1].            (1)

Frames are taken as they are stored, whatever their rate; the model was trained on 24 frames per second.
"""

import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from helios_jax.typing import AnyArray, Float, UInt8

ImageLike = Any
"""A path, a PIL image, or an RGB array [H, W, 3] of uint8 or of floats in [0, 1]."""

VideoLike = Any
"""A path, a list of what ``ImageLike`` allows, or an array [F, H, W, 3] of uint8 or of floats in [0, 1]."""

Frames = UInt8[np.ndarray, "*F H W 3"] | Float[np.ndarray, "*F H W 3"]
"""Unsigned RGB pixels: uint8, or float32 in [0, 1]."""

SWSCALE_FLAGS = 0x2 | 0x2000 | 0x40000
"""Bilinear, full horizontal chroma, accurate rounding: FFmpeg's default conversion between YUV and RGB
darkens pixels by more than one level of 255 on average, this one by less than 0.02."""


def load_image(image: ImageLike, height: int, width: int) -> Float[np.ndarray, "{height} {width} 3"]:
    """Reads one image, resized to ``height`` x ``width``, with values in [-1, 1] by (1).

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
    return to_signed(_resize(_pixels(image), height, width))


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
        ValueError: The file is no video, holds no frame, or is damaged before ``max_frames``; or shape,
            dtype or range of an array are not as above.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    if isinstance(video, str | os.PathLike):
        return _read_video(pathlib.Path(video), height, width, max_frames)
    if isinstance(video, list | tuple):
        frames = [_resize(_pixels(frame), height, width) for frame in video[:max_frames]]
        if len({frame.dtype for frame in frames}) != 1:
            raise ValueError(
                f"a video given as a list of {len(frames)} images must hold at least one, and either uint8 "
                "pixels or floats in [0, 1], not both"
            )
        return np.stack(frames)
    frames = _checked(video, "[F, H, W, 3]")[:max_frames]
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([_resize(frame, height, width) for frame in frames])


def to_signed(frames: Frames) -> Float[np.ndarray, "*F H W 3"]:
    """Maps unsigned pixels to float32 in [-1, 1] by (1)."""
    unsigned = frames.astype(np.float32) / np.float32(255) if frames.dtype == np.uint8 else frames
    return np.float32(2) * unsigned - np.float32(1)


def uint8_frames(frames: AnyArray) -> UInt8[np.ndarray, "F H W 3"]:
    """``frames`` in host memory. Raises ValueError unless they are uint8 of shape [F, H, W, 3]."""
    checked = _checked(frames, "[F, H, W, 3]")
    if checked.dtype != np.uint8:
        raise ValueError(f"frames to be written must be uint8, got {checked.dtype}; scale them to 0..255 and round")
    return checked


def _checked(array: Any, layout: str) -> Frames:
    """The array as uint8 or float32; ValueError unless it is laid out as ``layout`` with values in range."""
    array = np.asarray(array)
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


def _pixels(image: ImageLike) -> Frames:
    """One image as RGB [H, W, 3], uint8 or float32 in [0, 1]."""
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image):
        return _rgb(image)
    if not isinstance(image, str | os.PathLike):
        return _checked(image, "[H, W, 3]")
    path = _existing_file(pathlib.Path(image), "image")
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


def _resize(
    frame: Frames, height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"] | Float[np.ndarray, "{height} {width} 3"]:
    """Lanczos to the wanted size; a frame of that size is returned as it is."""
    from PIL import Image

    if frame.shape[:2] == (height, width):
        return frame
    size, lanczos = (width, height), Image.Resampling.LANCZOS
    if frame.dtype == np.uint8:
        return np.asarray(Image.fromarray(frame).resize(size, lanczos))
    channels = [Image.fromarray(np.ascontiguousarray(frame[..., c])) for c in range(3)]
    resized = np.stack([np.asarray(channel.resize(size, lanczos)) for channel in channels], axis=-1)
    return resized.clip(0, 1)  # Lanczos overshoots at edges


def _existing_file(path: pathlib.Path, kind: str) -> pathlib.Path:
    if not path.exists():
        raise FileNotFoundError(f"the {kind} {path} does not exist (looked in {pathlib.Path.cwd()})")
    if not path.is_file():
        raise ValueError(f"the {kind} {path} is not a file; give the path of one {kind}")
    return path


def _read_video(
    path: pathlib.Path, height: int, width: int, max_frames: int | None
) -> UInt8[np.ndarray, "F {height} {width} 3"]:
    import av

    _existing_file(path, "video")
    pixels = bytearray()  # grows in place; a list of frames and its stack would need the memory twice
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream")
            for frame in itertools.islice(_decode(container, path), max_frames):
                pixels += _resize(frame, height, width).tobytes()
    except av.error.FFmpegError as error:
        raise ValueError(
            f"cannot read the video {path}: {error.strerror}; download it again or re-encode it as H.264 in mp4"
        ) from error
    if not pixels:
        raise ValueError(f"the video {path} holds no frames")
    return np.frombuffer(pixels, np.uint8).reshape(-1, height, width, 3)


def _decode(container: Any, path: pathlib.Path) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yields every intact frame of the first video stream; then raises ValueError if the file is damaged."""
    import av

    stream = container.streams.video[0]
    count, damaged = 0, False
    for packet in container.demux(stream):
        try:
            decoded = [] if packet.is_corrupt else packet.decode()
            damaged = packet.is_corrupt
        except av.error.InvalidDataError:
            decoded, damaged = [], True
        if damaged:
            decoded = stream.codec_context.decode(None)  # frames held back for reordering
        for frame in decoded:
            count += 1
            yield _upright(frame, path)
        if damaged:
            remedy = f"use those with load_video(..., max_frames={count}), or re-encode it" if count else "re-encode it"
            raise ValueError(f"the video {path} is damaged or cut off: {count} frames could be decoded; {remedy}")


def _upright(frame: Any, path: pathlib.Path) -> UInt8[np.ndarray, "H W 3"]:
    """A decoded frame as RGB, turned as the file's display matrix says."""
    if frame.rotation % 90:
        raise ValueError(f"{path} is rotated by {frame.rotation} degrees; re-encode it without rotation")
    pixels = frame.to_ndarray(format="rgb24", interpolation=SWSCALE_FLAGS)
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
