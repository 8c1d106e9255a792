"""Opening media files, with the same error messages everywhere."""

import contextlib
import pathlib
from collections.abc import Generator
from typing import Any

MAX_PIXELS = 1 << 27
"""Largest frame that is decoded, 16384 x 8192: damaged headers announce sizes that do not fit into memory."""


class ClipError(ValueError):
    """A clip that cannot be used; the message says why."""


def video_url(path: pathlib.Path) -> str:
    """The path with a prefix for FFmpeg, which would read "a:b.mp4" as the protocol "a"."""
    return f"file:{path}"


@contextlib.contextmanager
def open_video(path: pathlib.Path) -> Generator[tuple[Any, Any]]:
    """Opens a video file: PyAV's container and its main video stream.

    The main stream is the one marked as default, else the largest; cover pictures do not count.

    Raises:
        ClipError: It is not a video; or FFmpeg reports an error inside the ``with`` block.
    """
    import av

    try:
        # Playlists are excluded because they could name other files and URLs.
        with av.open(video_url(path), options={"protocol_whitelist": "file"}) as container:
            stream = _main_stream(container, path)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, stream
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, av.error.FFmpegError) else "its texts are not UTF-8"
        raise ClipError(
            f"cannot read the video {path}: {reason}; download it again or re-encode it as H.264 in mp4"
        ) from error


def damaged(path: pathlib.Path, intact: int, seconds: float | None = None) -> ClipError:
    """The error for a file of which only the first ``intact`` frames, up to ``seconds``, can be decoded."""
    when = "" if seconds is None else f" (up to {seconds:.2f} s)"
    remedy = f"use only those (max_frames={intact}), or re-encode it" if intact else "re-encode it"
    return ClipError(f"the video {path} is damaged or cut off: {intact} frames could be decoded{when}; {remedy}")


def _main_stream(container: Any, path: pathlib.Path) -> Any:
    from av.stream import Disposition

    streams = container.streams.video
    shown = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    if not shown:
        found = "only a cover picture" if streams else "no video stream"
        raise ClipError(f"{path} has {found}; give a file with a video")
    shown = [stream for stream in shown if stream.codec_context is not None]
    if not shown:
        raise ClipError(f"cannot read the video {path}: its codec is not known; re-encode it as H.264 in mp4")
    default = [stream for stream in shown if stream.disposition & Disposition.default]
    if default:
        return default[0]
    return max(shown, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
