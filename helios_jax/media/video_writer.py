"""Videos out: an mp4 that can be watched while it grows and survives an interruption at any time.

Every ``write`` encodes its frames on their own into a fragment (``media/fragments.py``) in memory and appends it to
the file in one step. The file is therefore complete after each write, whatever happens next. A clean close then copies
the packets into an ordinary mp4 whose index (``moov``) comes first, in which every player can seek.
"""

import contextlib
import os
from fractions import Fraction

from helios_jax._warnings import warn_user
from helios_jax.media.fragments import ChunkEncoder, copy_packets
from helios_jax.media.outputs import Claim, replacement
from helios_jax.media.pixels import uint8_frames
from helios_jax.media.provenance import MP4_END, MP4_START, written_by_us
from helios_jax.media.rates import frame_rate
from helios_jax.typing import AnyArray, Path
from helios_jax.user_input import user_path, whole_number


class VideoWriter:
    """Writes one video, chunk by chunk, as H.264 (yuv420p) in mp4; a context manager.

    Leaving the ``with`` block normally closes the writer; leaving it by an exception keeps the file as it
    is, playable with every frame of the completed writes (``make_seekable`` can finish it later).

    Args:
        path: The file, ending in ``.mp4``; it and its folder are created at once, and the file is
            removed again if nothing is written.
        fps: Frames per second, see ``media.rates.frame_rate``: 29.97 is 30000/1001.
        crf: Constant rate factor of x264, 0 (largest file) to 51; 18 is visually lossless.
        overwrite: Replace an existing file if this library wrote it; other files are never replaced.
        enlarge: Whole factor by which frames are enlarged, without blur: every pixel becomes a square. Players smooth
            small videos when they fill a screen with them.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is off, it was not written by this library, or another
            process is writing it.
        ValueError: ``path`` does not end in ``.mp4``, or ``fps``, ``crf`` or ``enlarge`` out of range.
        OSError: The folder cannot be created or written to.
    """

    def __init__(
        self, path: Path, *, fps: float | Fraction = 24, crf: int = 18, overwrite: bool = False, enlarge: int = 1
    ) -> None:
        self.fps = frame_rate(fps)
        whole_number(crf, "crf", at_least=0, at_most=51)
        self._enlarge = whole_number(enlarge, "enlarge", at_least=1, at_most=64)
        self.num_frames = 0
        self._encoder = ChunkEncoder.for_files(fps=self.fps, crf=crf)
        self._size: tuple[int, ...] | None = None
        self._num_bytes = len(MP4_START)
        self._claim = Claim(path, ".mp4", start=MP4_START, overwrite=overwrite)
        self.path = self._claim.path
        self._closed = False

    def write(self, frames: AnyArray) -> None:
        """Appends ``frames``, uint8 [F, H, W, 3]; they are on disk when this returns.

        Raises:
            ValueError: Wrong shape or dtype, odd sides, a size that differs from earlier frames, or a
                closed writer.
            OSError: The disk is full or the file is gone. What was written before stays readable, and the frames can be
                written again.
        """
        if self._closed:
            raise ValueError(f"the writer of {self.path} is closed; open another path")
        frames = uint8_frames(frames)
        if self._enlarge > 1:
            frames = frames.repeat(self._enlarge, axis=1).repeat(self._enlarge, axis=2)
        size = frames.shape[1:3]
        if self._size not in (None, size):
            raise ValueError(f"all frames of {self.path} must have one size: it has {self._size}, got {size}")
        init, *fragments = self._encoder.encode(frames, first_frame=self.num_frames)
        # Every write encodes alike, so the first header (moov) holds for all. ``ftyp`` is in the file already.
        header = b"" if self._size else init[init.index(b"moov") - 4 :]
        self._append(b"".join([header, *fragments]))
        # Counted last: if encoding or writing fails, the next write continues from what the file holds.
        self._size = size
        self.num_frames += len(frames)

    def close(self, *, seekable: bool = True) -> None:
        """Finishes the file; ``seekable`` moves its index to the front, for which the file is copied once.

        If the disk has no space for the copy, this method warns and leaves the file as it is, with all its frames.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if seekable and self.num_frames:
                self._make_seekable()
        finally:
            self._claim.release(remove=not self.num_frames)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(seekable=error is None)

    def _append(self, data: bytes) -> None:
        """Appends whole fragments and waits until they are on disk; removes what an error left of them."""
        # The file is reopened and written in one call, so players only ever see whole fragments. After fsync the
        # fragments survive a power failure.
        self._claim.verify()
        with open(self.path, "r+b", buffering=0) as file:
            try:
                file.seek(self._num_bytes)
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) or 0 :]
                os.fsync(file.fileno())
            except BaseException as error:
                with contextlib.suppress(OSError):
                    file.truncate(self._num_bytes)
                if isinstance(error, OSError):
                    raise type(error)(error.errno, error.strerror, str(self.path)) from error
                raise
        self._num_bytes += len(data)

    def _make_seekable(self) -> None:
        import av

        try:
            self._claim.verify()
            make_seekable(self.path)
        except (OSError, av.error.FFmpegError) as error:
            warn_user(
                f"{self.path} is complete but was left as a fragmented mp4, in which some players cannot seek: "
                f"{error.strerror or error}; fix that, then call helios_jax.media.video_writer.make_seekable "
                "to finish it"
            )


def make_seekable(path: Path) -> None:
    """Replaces the mp4 at ``path`` by one with its index at the front, copying the encoded frames.

    The copy is written next to the file and replaces it in one step, so an interruption leaves the original. Use
    it on the file of an interrupted ``VideoWriter``.

    Raises:
        ValueError: The file was not written by ``VideoWriter``: in other files, sound and other tracks would be lost.
        OSError: The disk has no space for the copy.
    """
    path = user_path(path)
    if not written_by_us(path):
        raise ValueError(f"{path} was not written by helios_jax, so it is not changed")
    with replacement(path) as copy:
        copy_packets(path, copy)
        with open(copy, "ab") as file:
            file.write(MP4_END)
            file.flush()
            os.fsync(file.fileno())
