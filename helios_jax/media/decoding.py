"""The decoder: exact frames of a video file, one at a time, starting at any frame.

A frame is found by its number. The decoder seeks to the last key frame before it, decodes from there, and recognises
the frame by its presentation time, so a cut late in a film costs little more than one at its start. A file that
cannot be searched this way (it stores no times, or its decoder does not confirm them) is decoded from the start:
the frames are the same but take longer.

Frames are taken as they are stored, whatever their rate, unless the caller asks for a rate.
"""

import functools
import itertools
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from helios_jax._warnings import warn_user
from helios_jax.media.containers import is_cut_off
from helios_jax.media.files import ClipError, damaged, open_video
from helios_jax.media.orientation import display_matrix, upright
from helios_jax.media.timeline import Timeline, read_timeline
from helios_jax.typing import Int, Path, UInt8
from helios_jax.user_input import existing_file

_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""Code points of ITU-T H.273."""

SWSCALE_FLAGS = 0x2 | 0x2000 | 0x40000
"""Bilinear, full horizontal chroma, accurate rounding: FFmpeg's default conversion between YUV and RGB
darkens pixels by more than one level of 255 on average, this one by less than 0.02."""


def read_frames(
    path: Path, start: int = 0, stop: int | None = None, *, fps: float | Fraction | None = None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Decodes frames ``start`` to ``stop`` of a video file; memory does not grow with their number.

    Applies stored rotations by multiples of 90 degrees and reflections; see ``media.orientation``.

    Args:
        path: Anything that FFmpeg reads; its main video stream is used.
        start: The first frame, counted from 0.
        stop: The frame after the last; ``None``: to the end. If the film is shorter, the iteration ends early.
        fps: Resample to this many frames per second, by the stored presentation times: frame k is the one nearest to
            k / fps seconds after the first (``Timeline.resampled``). ``start`` and ``stop`` then count resampled
            frames.

    Raises:
        FileNotFoundError: The path does not exist.
        ClipError: It is not a video, it is damaged before ``stop``, or it is rotated by another angle; or ``fps`` is
            given and the frames have no timestamps.
    """
    path = existing_file(path, "video")
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(f"need 0 <= start <= stop, got {start} and {stop}")
    if fps is None:
        # islice does not ask for the frame after the last, so damage beyond the cut does no harm.
        for frame in itertools.islice(_decode_from(path, start), None if stop is None else stop - start):
            yield _rgb(frame, path)
        return
    yield from read_numbered(path, resampled_numbers(path, read_timeline(path), fps)[start:stop])


def read_numbered(path: pathlib.Path, numbers: Int[np.ndarray, " F"]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Decodes the frames with these numbers, which must not decrease; numbers may repeat."""
    if len(numbers) == 0:
        return
    copies = np.bincount(numbers - numbers[0]).tolist()
    for count, frame in zip(copies, _decode_from(path, int(numbers[0])), strict=False):
        if count:
            yield from itertools.repeat(_rgb(frame, path), count)


def count_frames(path: pathlib.Path) -> int:
    """The number of frames, by decoding all of them."""
    return sum(1 for _ in _decode_from(path, 0))


def resampled_numbers(path: pathlib.Path, timeline: Timeline, fps: float | Fraction | None) -> Int[np.ndarray, " F"]:
    """Numbers of the stored frames to take for a rate of ``fps``; all if ``fps`` is ``None``.

    Raises:
        ClipError: The timestamps are missing or inconsistent.
    """
    if fps is None or timeline.num_frames == 0:
        return np.arange(timeline.num_frames)
    try:
        return timeline.resampled(fps)
    except ValueError as error:
        raise ClipError(f"cannot resample the video {path} to {fps} frames per second: {error}") from error


def _decode_from(path: pathlib.Path, start: int) -> Iterator[Any]:
    """Decoded frames from number ``start`` on, not yet converted to RGB, which takes longer than decoding."""
    if start:
        yield from _sought(path, start, read_timeline(path))
        return
    with open_video(path) as (container, stream):
        yield from _counted(_decode(container, stream), path, 0)


def _sought(path: pathlib.Path, start: int, timeline: Timeline) -> Iterator[Any]:
    """``_decode_from`` for a cut that does not begin with the film."""
    # Key frames are only the container's claim. If the frame cannot be decoded from one (a demuxer that seeks by
    # decoding time may land too late, an open group of pictures may lack a reference), the previous one is tried.
    for key in timeline.keys_before(start):
        with open_video(path) as (container, stream):
            container.seek(key, stream=stream)
            frames = _decode(container, stream, before=timeline.time(start))
            found = _search(frames, timeline, start)
            if found is not None:
                yield from _counted(itertools.chain([found], frames), path, start)
                return
    with open_video(path) as (container, stream):
        yield from itertools.islice(_counted(_decode(container, stream), path, 0), start, None)


def _search(frames: Iterator[Any], timeline: Timeline, start: int) -> Any:
    """The frame with that number, dropping those before it; ``None`` if a later frame or damage comes first."""
    import av

    try:
        for frame in frames:
            number = timeline.number(frame.pts)
            if number == start:
                return frame
            if number is None or number > start:
                return None
    except (_DamageError, av.error.FFmpegError):
        return None  # The frame may refer to one before the key frame, so this need not be damage.
    return None


def _decode(container: Any, stream: Any, before: int | None = None) -> Iterator[Any]:
    """Yields every intact frame from where the container stands; then raises _DamageError if the file is damaged.

    The codec keeps FFmpeg's default of threads within a frame. With threads for whole frames, errors would show up some
    frames late, and the number of intact frames would be wrong; helios-prepare reads several clips at once instead.

    Args:
        container: The open file.
        stream: Its video stream.
        before: Skip frames shown before this time if no other frame refers to them, which saves up to half of the work
            between a key frame and a cut.
    """
    import av

    for packet in container.demux(stream):
        if before is not None:
            needed = packet.pts is None or packet.pts >= before
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        try:
            broken = packet.is_corrupt
            decoded = [] if broken else packet.decode()
        except av.error.InvalidDataError:
            broken, decoded = True, []
        if broken:
            decoded = stream.codec_context.decode(None)  # frames held back for reordering are intact
        for frame in decoded:
            if frame.is_corrupt:  # the codec made up pixels for what is missing
                raise _DamageError
            yield frame
        if broken:
            raise _DamageError


class _DamageError(Exception):
    """The next frame cannot be decoded."""


def _counted(frames: Iterator[Any], path: pathlib.Path, count: int) -> Iterator[Any]:
    """Yields the frames, the first of which has the number ``count``; reports damage with the frame's number."""
    seconds = None
    try:
        for frame in frames:
            seconds = frame.time
            yield frame
            count += 1
    except _DamageError:
        raise damaged(path, count, seconds) from None
    if is_cut_off(path):
        raise damaged(path, count, seconds)


def _rgb(frame: Any, path: pathlib.Path) -> UInt8[np.ndarray, "H W 3"]:
    """A decoded frame as RGB, rotated and mirrored according to the file's display matrix."""
    import av

    _warn_of_transfer(path, int(frame.color_trc))
    try:
        matrix = display_matrix(frame)
    except ValueError as error:
        raise ClipError(f"{path} {error}") from error
    try:
        return upright(frame.to_ndarray(format="rgb24", interpolation=SWSCALE_FLAGS), matrix)
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError(f"cannot convert the frames of {path} from {frame.format.name} to RGB: {error}") from error


@functools.lru_cache(maxsize=1024)
def _warn_of_transfer(path: pathlib.Path, code: int) -> None:
    """Warns once per file if its frames are HDR."""
    if code in _HDR_TRANSFERS:
        warn_user(
            f"{path} is stored for HDR screens ({_HDR_TRANSFERS[code]}) and is read without tone mapping, so its "
            "colours are off; convert it to BT.709 first"
        )
