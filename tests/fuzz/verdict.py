"""The verdict on one run of ``helios-sample``: how it ended, what it said, and whether the video is the right one.

The fuzz tests call the command in their own process, so that programs are compiled once.
"""

import contextlib
import dataclasses
import hashlib
import io
import pathlib
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

import av
import numpy as np

from helios_jax import sample

MAX_LINES = 4
"""Most lines that an error message may have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a run of the command ended.

    Attributes:
        code: Exit code; ``None``: it ended in a traceback, or not within the limit.
        message: Standard error, or the traceback.
        seconds: How long it took.
        same_video: Whether the frames it wrote are those of the reference; ``None`` without a video or a reference.
    """

    code: int | None
    message: str
    seconds: float
    same_video: bool | None

    @property
    def fault(self) -> str | None:
        """What is wrong with the way in which it ended; ``None`` when nothing is."""
        if self.code is None or "Traceback (most recent call last)" in self.message:
            return f"no clean end: {self.message}"
        if self.code != 0 and not self.message.strip():
            return f"exit code {self.code} without a message"
        if self.code != 0 and len(self.message.strip().splitlines()) > MAX_LINES:
            return f"more than {MAX_LINES} lines: {self.message}"
        if self.code == 0 and self.same_video is False:
            return "exit code 0 and another video"
        return None


class Hang(BaseException):
    """Raised by the alarm. Not an ``Exception``, so that the command does not take it for an error of its own."""


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(f"not finished after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def verdict(argv: Sequence[str], reference: str | None = None, *, limit: float = 60.0) -> Verdict:
    """Runs ``helios-sample`` with these arguments, in this process.

    Args:
        argv: The arguments, without the program's name; the video is the one after ``--out=``.
        reference: ``video_digest`` of the video that a run without faults makes; ``None``: any video is right.
        limit: Seconds after which the run counts as hanging.
    """
    error = io.StringIO()
    start = time.monotonic()
    code: int | None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            with _alarm(limit):
                code = sample.main(sample.parse(["helios-sample", *argv]))
        except SystemExit as exit_:  # argparse
            code = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:
            code = None
            error.write(traceback.format_exc())
    seconds = time.monotonic() - start
    video = next((pathlib.Path(text.removeprefix("--out=")) for text in argv if text.startswith("--out=")), None)
    same_video = None
    if reference is not None and video is not None and video.is_file():
        same_video = video_digest(video) == reference
    return Verdict(code=code, message=error.getvalue(), seconds=seconds, same_video=same_video)


def video_digest(path: pathlib.Path) -> str:
    """Digest of the decoded frames of a video."""
    digest = hashlib.sha256()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            digest.update(np.ascontiguousarray(frame.to_ndarray(format="rgb24")))
    return digest.hexdigest()
