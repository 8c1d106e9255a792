"""Records become frames.

From a cut [a, b) of which n frames are wanted, those from a + below(b - a - n + 1) on are taken, with a random
number that belongs to (epoch, index). Each frame is cropped, then centre-cropped to the wanted aspect, and resized
with PIL's antialiased bilinear filter; one that has the wanted size stays as it is.
"""

import io
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from helios_jax.data.draws import Draws
from helios_jax.data.helios_clips.metadata import ClipError
from helios_jax.media.reading import SWSCALE_FLAGS
from helios_jax.typing import Path, UInt8


def decode_clip(record: Mapping[str, Any], *, epoch: int, index: int) -> UInt8[np.ndarray, "F H W 3"]:
    """The frames of a record of ``helios_clips`` or ``moving_shapes``, in the shape of its bucket.

    Args:
        record: As TFDS's data source yields it.
        epoch: Together with ``index`` it decides which part of the cut is taken.
        index: Number of the record.

    Raises:
        ClipError: The video is damaged, or not what the record says.
    """
    start, stop = (int(frame) for frame in record["cut"])
    length, size = int(record["num_frames"]), (int(record["height"]), int(record["width"]))
    name = record["name"].decode()
    room = stop - start - length
    if room < 0:
        raise ClipError("short", f"{name} has {stop - start} frames, {length} are wanted")
    start += Draws(epoch, index).below(room + 1)
    box = centre_crop(tuple(int(edge) for edge in record["crop"]), size)
    frames = read_frames(record["video"], start, start + length, name=name)
    return np.stack([resize(frame, box, size) for frame in frames])


def read_frames(video: bytes | Path, start: int, stop: int, *, name: str = "") -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Decodes frames ``start`` to ``stop`` of a video file; those before are decoded too, but not converted.

    Args:
        video: The file, or its content.
        start: First frame.
        stop: The one behind the last.
        name: What messages call it.

    Raises:
        ClipError: The file is missing, is no video, is damaged, or has fewer frames.
    """
    import av

    name = name or (f"a video of {len(video)} bytes" if isinstance(video, bytes) else os.fspath(video))
    if not isinstance(video, bytes) and not os.path.isfile(video):
        raise ClipError("missing", f"there is no file {name}")
    try:
        with av.open(io.BytesIO(video) if isinstance(video, bytes) else os.fspath(video)) as container:
            if not container.streams.video:
                raise ClipError("damaged", f"{name} is damaged or no video: it has no video stream")
            count = 0
            for frame in itertools.islice(_decode(container, name), start, stop):
                count += 1
                yield _upright(frame, name)
    except av.error.FFmpegError as error:
        raise ClipError("damaged", f"{name} is damaged or no video: {error.strerror}") from error
    if count < stop - start:
        raise ClipError("damaged", f"{name} does not have the frames {start} to {stop}: {count} of them are there")


def centre_crop(crop: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest box of the aspect of ``size`` in the middle of ``crop``.

    Args:
        crop: (x0, x1, y0, y1).
        size: (rows, columns).

    Returns:
        (x0, y0, x1, y1), in whole pixels.
    """
    x0, x1, y0, y1 = crop
    width = min(x1 - x0, (y1 - y0) * size[1] // size[0])
    height = min(y1 - y0, (x1 - x0) * size[0] // size[1])
    left, upper = x0 + (x1 - x0 - width) // 2, y0 + (y1 - y0 - height) // 2
    return left, upper, left + width, upper + height


def resize(
    frame: UInt8[np.ndarray, "h w 3"], box: tuple[int, int, int, int], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """``box`` (x0, y0, x1, y1) of a frame in ``size`` (rows, columns)."""
    from PIL import Image

    rows, columns = size
    if box[2:] == (box[0] + columns, box[1] + rows):
        return frame[box[1] : box[3], box[0] : box[2]]
    return np.asarray(Image.fromarray(frame).resize((columns, rows), Image.Resampling.BILINEAR, box=box))


def _decode(container: Any, name: str) -> Iterator[Any]:
    """Every frame of the first video stream; no concealment of errors."""
    container.streams.video[0].codec_context.options = {"err_detect": "explode"}
    for packet in container.demux(video=0):
        if packet.is_corrupt:
            raise ClipError("damaged", f"{name} is damaged or cut off")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise ClipError("damaged", f"{name} is damaged")
            yield frame


def _upright(frame: Any, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """A decoded frame as RGB, turned as the file's display matrix says."""
    if frame.rotation % 90:
        raise ClipError("damaged", f"{name} is rotated by {frame.rotation} degrees; re-encode it without rotation")
    pixels = frame.to_ndarray(format="rgb24", interpolation=SWSCALE_FLAGS)
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
