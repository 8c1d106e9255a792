"""Videos out: an mp4 that can be watched while it grows and survives an interruption at any time.

Every ``write`` encodes its frames on their own (they begin with a key frame) into fragments of a
fragmented mp4 (ISO/IEC 14496-12: ``moof`` + ``mdat`` boxes) in memory and appends them to the file in one
step. The file is therefore complete after each write, whatever happens next. A clean close then copies
the packets into an ordinary mp4 whose index (``moov``) comes first, in which every player can seek.
"""

import contextlib
import dataclasses
import io
import os
import struct
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from helios_jax._warnings import warn_user
from helios_jax.media.decoding import SWSCALE_FLAGS
from helios_jax.media.files import video_url
from helios_jax.media.outputs import Claim, replacement
from helios_jax.media.pixels import uint8_frames
from helios_jax.media.provenance import MP4_END, MP4_START, written_by_us
from helios_jax.media.rates import frame_rate
from helios_jax.typing import AnyArray, Path, UInt8
from helios_jax.user_input import user_path, whole_number

# The BT.601 matrix is what swscale uses and what players that ignore the tags assume at these sizes.
_COLOUR = {"colorspace": "smpte170m", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}

_FF_QP2LAMBDA = 118
"""Units of FFmpeg's ``global_quality`` per unit of quantiser."""

_MOVFLAGS = "delay_moov+default_base_moof+frag_discont"
"""How fragments are laid out. delay_moov: the header is written with the first fragment, when the codec's parameters
are known. default_base_moof: positions count from the fragment itself, so it may stand anywhere in a file.
frag_discont: a fragment states its own start time, that of its first packet; otherwise every piece would begin at
zero, since the muxer does not know the earlier ones."""


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
        self._encoder = FragmentEncoder.create(fps=self.fps, crf=crf)
        self._size: tuple[int, ...] | None = None
        self._num_fragments = 0
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
        if size[0] % 2 or size[1] % 2:
            raise ValueError(f"yuv420p video needs even sides, got height x width {size[0]} x {size[1]}")
        if self._size not in (None, size):
            raise ValueError(f"all frames of {self.path} must have one size: it has {self._size}, got {size}")
        encoded = self._encoder.encode(frames, first_frame=self.num_frames, first_fragment=self._num_fragments)
        boxes = list(_boxes(encoded))
        # The header (moov) is written once: every write encodes alike, so the first header holds for all. ``ftyp`` is
        # in the file already.
        wanted = (b"moof", b"mdat") if self._size else (b"moov", b"moof", b"mdat")
        self._append(b"".join(box for kind, box in boxes if kind in wanted))
        # Counted last: if encoding or writing fails, the next write continues from what the file holds.
        self._size = size
        self._num_fragments += sum(kind == b"moof" for kind, _ in boxes)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FragmentEncoder:
    """Encodes frames into pieces of one fragmented mp4; it keeps no state between them and touches no file.

    Attributes:
        fps: Frames per second.
        codec: Name of the encoder.
        options: Its options.
    """

    fps: Fraction
    codec: str
    options: Mapping[str, str]

    @classmethod
    def create(cls, *, fps: Fraction, crf: int) -> "FragmentEncoder":
        """H.264 with a constant rate factor, or MPEG-4 Part 2, with a warning, if there is no H.264 encoder."""
        import av

        if "libx264" in av.codecs_available:
            # Without B-frames packets leave in display order, so pieces of any length join exactly.
            return cls(fps=fps, codec="libx264", options={"crf": str(crf), "bf": "0", **_COLOUR})
        warn_user("this build of PyAV has no libx264: writing MPEG-4 Part 2 in place of H.264")
        quality = str(3 * _FF_QP2LAMBDA)
        return cls(fps=fps, codec="mpeg4", options={"flags": "+qscale", "global_quality": quality, **_COLOUR})

    def encode(self, frames: UInt8[np.ndarray, "F H W 3"], *, first_frame: int, first_fragment: int) -> bytes:
        """The frames as a complete fragmented mp4: ftyp, moov, then moof and mdat for each fragment.

        Each piece gets an encoder of its own, which begins with a key frame and is drained at the end, so the piece
        holds all its frames and depends on no other. The price is one key frame per piece.

        Args:
            frames: RGB with even sides.
            first_frame: Frames of the film before these; they set the clock.
            first_fragment: Fragments before these. ISO/IEC 14496-12 requires ascending numbers.
        """
        import av

        options = {"movflags": _MOVFLAGS, "fragment_index": str(first_fragment + 1)}  # fragments count from 1
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4", options=options) as container:
            stream: Any = container.add_stream(self.codec, rate=self.fps, options=dict(self.options))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for number, pixels in enumerate(frames, start=first_frame):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame = frame.reformat(format="yuv420p", interpolation=SWSCALE_FLAGS)
                # Times in units of one frame need no rounding, whatever the rate and however long the film.
                frame.pts, frame.time_base = number, 1 / self.fps
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))  # frames that the encoder looked ahead to
        # Leaving the block has written the last fragment into the buffer.
        return buffer.getvalue()


def make_seekable(path: Path) -> None:
    """Replaces the mp4 at ``path`` by one with its index at the front, copying the encoded frames.

    The copy is written next to the file and replaces it in one step, so an interruption leaves the original. Use
    it on the file of an interrupted ``VideoWriter``.

    Raises:
        ValueError: The file was not written by ``VideoWriter``: in other files, sound and other tracks would be lost.
        OSError: The disk has no space for the copy.
    """
    import av

    path = user_path(path)
    if not written_by_us(path):
        raise ValueError(f"{path} was not written by helios_jax, so it is not changed")
    with replacement(path) as copy:
        with (
            av.open(video_url(path)) as source,
            av.open(video_url(copy), "w", format="mp4", options={"movflags": "faststart"}) as target,
        ):
            stream = source.streams.video[0]
            out = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.is_corrupt:  # the fragment that the writer could not finish
                    break
                if packet.dts is not None:  # the last packet is empty
                    packet.stream = out
                    target.mux(packet)
        with open(copy, "ab") as file:
            file.write(MP4_END)
            file.flush()
            os.fsync(file.fileno())


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The top-level boxes of an mp4 as (type, whole box)."""
    start = 0
    while start < len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        yield kind, data[start : start + size]
        start += size
