"""Opening media files, with the same error messages everywhere."""

import contextlib
import pathlib
from collections.abc import Generator
from typing import Any

from helios_jax.typing import Path


class ClipError(ValueError):
    """A clip that cannot be used; the message says why."""


def existing_file(path: Path, kind: str) -> pathlib.Path:
    """Returns ``path`` if it is a file.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is a folder.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"the {kind} {path} does not exist (looked in {pathlib.Path.cwd()})")
    if not path.is_file():
        raise ValueError(f"the {kind} {path} is not a file; give the path of one {kind}")
    return path


def video_url(path: pathlib.Path) -> str:
    """The path as FFmpeg takes it: without the prefix, a name such as "a:b.mp4" would be the protocol "a"."""
    return f"file:{path}"


@contextlib.contextmanager
def open_video(path: pathlib.Path) -> Generator[tuple[Any, Any]]:
    """Opens a video file: PyAV's container and its first video stream.

    Raises:
        ClipError: It is not a video; or FFmpeg reports an error inside the ``with`` block.
    """
    import av

    try:
        with av.open(video_url(path)) as container:
            if not container.streams.video:
                raise ClipError(f"{path} has no video stream")
            yield container, container.streams.video[0]
    except av.error.FFmpegError as error:
        raise ClipError(
            f"cannot read the video {path}: {error.strerror}; download it again or re-encode it as H.264 in mp4"
        ) from error


def damaged(path: pathlib.Path, intact: int) -> ClipError:
    """The error for a file in which only the first ``intact`` frames can be decoded."""
    remedy = f"use only those (max_frames={intact}), or re-encode it" if intact else "re-encode it"
    return ClipError(f"the video {path} is damaged or cut off: {intact} frames could be decoded; {remedy}")
