"""Videos as fragments: each chunk of a video is encoded on its own into pieces that a player can be fed with at once.

A fragmented mp4 (ISO/IEC 14496-12) is an init segment, the boxes ``ftyp`` and ``moov`` with the codec's parameters but
no frames, and fragments, the boxes ``moof`` and ``mdat``. For viewers there is one for each frame, which can be sent as
soon as it is encoded; files get one for each chunk. Every chunk gets an encoder of its
own, which begins with a key frame and is drained at the end, so a chunk depends on no other. Its init segment is equal
for all chunks of one size, also at another quality, so that

    init segment + any chunks in order     is a video, also if chunks at the start or end are missing

The price is one key frame per chunk, and about 104 bytes per frame for the boxes.
"""

import dataclasses
import os
import struct
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from helios_jax._warnings import warn_user
from helios_jax.media.decoding import SWSCALE_FLAGS
from helios_jax.media.files import video_url
from helios_jax.media.pixels import uint8_frames
from helios_jax.media.rates import frame_rate
from helios_jax.typing import AnyArray, Path
from helios_jax.user_input import user_path

# The BT.601 matrix is what swscale uses and what players that ignore the tags assume at these sizes.
_COLOUR = {"colorspace": "smpte170m", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}

_FF_QP2LAMBDA = 118
"""Units of FFmpeg's ``global_quality`` per unit of quantiser."""

_MOVFLAGS = "delay_moov+default_base_moof+frag_discont"
"""How fragments are laid out. delay_moov: the init segment is written with the first fragment, when the codec's
parameters are known. default_base_moof: positions count from the fragment itself, so it may stand anywhere in a file.
frag_discont: a fragment states its own start time, that of its first packet; otherwise every chunk would begin at zero,
since the muxer does not know the earlier ones."""


_QUALITIES: dict[str, dict[str, str]] = {
    "h264": {"low": "28", "normal": "20", "high": "16"},
    "vp9": {"low": "42", "normal": "34", "high": "26"},
}
"""Constant rate factors; those of a row look alike at 384x640."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkEncoder:
    """Encodes the chunks of a video; it keeps no state between them and touches no file.

    Attributes:
        codec: Name of FFmpeg's encoder.
        options: Its options.
        fps: Frames per second.
        each_frame: Every frame is a fragment of its own; off: a chunk is one.
    """

    codec: str
    options: Mapping[str, str]
    fps: Fraction = Fraction(24)
    each_frame: bool = True

    @classmethod
    def live(cls, codec: str = "h264", *, quality: str = "normal", fps: float | Fraction = 24) -> "ChunkEncoder":
        """For viewers who wait: at 384x640 the first bytes come after one frame, and a chunk takes 0.1 to 0.2 s of CPU.

        Args:
            codec: "h264" (High profile), or "vp9" for browsers without it.
            quality: "low", "normal" or "high". It may change from chunk to chunk: the init segment does not.
            fps: Frames per second, see ``media.rates.frame_rate``.

        Raises:
            ValueError: Another codec or quality, ``fps`` out of range, or PyAV was built without the encoder.
        """
        import av

        if codec not in _QUALITIES or quality not in _QUALITIES[codec]:
            raise ValueError(f"codec={codec!r}, quality={quality!r} must be h264 or vp9, and low, normal or high")
        encoder = {"h264": "libx264", "vp9": "libvpx-vp9"}[codec]
        # One thread: with several, frames wait in the encoder.
        options = {"crf": _QUALITIES[codec][quality], "threads": "1", **_COLOUR}
        if codec == "h264":
            # stitchable: x264 writes the same parameter sets for every rate factor.
            options |= {"preset": "veryfast", "tune": "zerolatency", "bf": "0", "x264-params": "stitchable=1"}
        else:
            options |= {"deadline": "realtime", "cpu-used": "8", "b": "0", "lag-in-frames": "0"}
        if encoder not in av.codecs_available:
            raise ValueError(f"this build of PyAV has no {encoder}: install PyAV's wheel from PyPI")
        return cls(codec=encoder, options=options, fps=frame_rate(fps))

    @classmethod
    def for_files(cls, *, fps: Fraction, crf: int) -> "ChunkEncoder":
        """H.264 in its usual quality for the size, or MPEG-4 Part 2, with a warning, if there is no H.264 encoder."""
        import av

        if "libx264" in av.codecs_available:
            # Without B-frames packets leave in display order, so chunks of any length join exactly. A file that is cut
            # off in the header of a fragment is unreadable for FFmpeg; with few fragments that hardly happens.
            return cls(codec="libx264", options={"crf": str(crf), "bf": "0", **_COLOUR}, fps=fps, each_frame=False)
        warn_user("this build of PyAV has no libx264: writing MPEG-4 Part 2 in place of H.264")
        options = {"flags": "+qscale", "global_quality": str(3 * _FF_QP2LAMBDA), **_COLOUR}
        return cls(codec="mpeg4", options=options, fps=fps, each_frame=False)

    def encode(self, frames: AnyArray, first_frame: int) -> Iterator[bytes]:
        """Encodes a chunk, frame by frame as its results are taken.

        Args:
            frames: uint8 [F, H, W, 3], RGB with even sides.
            first_frame: Frames of the video before these. They set the clock and the number of the first fragment.

        Yields:
            The init segment, then the fragments, each when it is complete.

        Raises:
            ValueError: Wrong shape or dtype, no frames, or odd sides.
        """
        frames = uint8_frames(frames)
        if frames.shape[1] % 2 or frames.shape[2] % 2:
            raise ValueError(
                f"yuv420p video needs even sides, got height x width {frames.shape[1]} x {frames.shape[2]}"
            )
        return self._encode(frames, first_frame)

    def _encode(self, frames: np.ndarray, first_frame: int) -> Iterator[bytes]:
        import av

        # ISO/IEC 14496-12 requires ascending numbers, from 1.
        flags = _MOVFLAGS + ("+frag_every_frame" if self.each_frame else "")
        options = {"movflags": flags, "fragment_index": str(first_frame + 1)}
        output = _Output()
        with av.open(output, "w", format="mp4", options=options) as container:
            stream: Any = container.add_stream(self.codec, rate=self.fps, options=dict(self.options))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for number, pixels in enumerate(frames, start=first_frame):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame = frame.reformat(format="yuv420p", interpolation=SWSCALE_FLAGS)
                # Times in units of one frame need no rounding, whatever the rate and however long the video.
                frame.pts, frame.time_base = number, 1 / self.fps
                container.mux(stream.encode(frame))
                yield from output.segments()
            container.mux(stream.encode(None))  # frames that the encoder looked ahead to
        # Leaving the block has written the last fragments.
        yield from output.segments()


class _Output:
    """The file that the muxer writes to, cut into segments. Without ``seek``, the muxer goes back to nothing."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def segments(self) -> Iterator[bytes]:
        """The segments that are complete: ``ftyp`` and ``moov``, then each ``moof`` and its ``mdat``.

        The index at the end of the file (``mfra``), which holds for this chunk alone, is left out.
        """
        start, end = 0, 0
        for kind, size in _boxes(self._data):
            end += size
            if kind == b"mfra":
                start = end
            elif kind in (b"moov", b"mdat"):
                yield bytes(self._data[start:end])
                start = end
        del self._data[:start]


def codec_string(init: bytes) -> str:
    """The codec of an init segment as browsers are asked for it (RFC 6381), such as "avc1.64001e".

    Raises:
        ValueError: It is not the init segment of an H.264 or VP9 video.
    """
    for entry, box, skipped in ((b"avc1", b"avcC", 0), (b"vp09", b"vpcC", 4)):
        found = _child(init, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", entry, box)
        if found is not None and len(found) >= skipped + 4:
            if entry == b"avc1":
                return f"avc1.{found[1:4].hex()}"
            profile, level, depth = found[skipped], found[skipped + 1], found[skipped + 2] >> 4
            return f"vp09.{profile:02}.{level:02}.{depth:02}"
    raise ValueError("this is not the init segment of an H.264 or VP9 video")


def copy_packets(source: Path, target: Path) -> None:
    """Copies the encoded frames of a fragmented mp4 into an ordinary one, with its index first, as players seek by it.

    A fragment that is cut off, at the end of an interrupted file, is left out.
    """
    import av

    with (
        open(user_path(source), "rb") as file,
        av.open(_WholeBoxes(file), "r", format="mp4") as fragments,
        av.open(video_url(user_path(target)), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = fragments.streams.video[0]
        out = container.add_stream_from_template(stream)
        for packet in fragments.demux(stream):
            if packet.dts is not None:  # the last packet is empty
                # FFmpeg's parser takes every I frame for a start; frames after one may refer to frames before it.
                if packet.is_keyframe and stream.codec_context.name == "h264":
                    packet.is_keyframe = _is_idr(bytes(packet))
                packet.stream = out
                container.mux(packet)


def _is_idr(data: bytes) -> bool:
    """Whether a frame of H.264 is an IDR frame; its NAL units are stored with their lengths, in four bytes."""
    start = 0
    while start + 5 <= len(data):
        if data[start + 4] & 31 == 5:
            return True
        start += 4 + int.from_bytes(data[start : start + 4])
    return False


class _WholeBoxes:
    """A file up to the end of its last complete fragment: FFmpeg may refuse the whole of one that is cut off."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = position = 0
        length = file.seek(0, os.SEEK_END)
        while position + 8 <= length:
            file.seek(position)
            size, kind = struct.unpack(">I4s", file.read(8))
            if size == 1:  # 64 bits follow
                (size,) = struct.unpack(">Q", file.read(8).ljust(8, b"\0"))
            position += max(8, size or length)
            # A ``moof`` without its ``mdat`` is of no use.
            if position <= length and kind != b"moof":
                self._size = position
        file.seek(0)

    def read(self, size: int) -> bytes:
        return self._file.read(max(0, min(size, self._size - self._file.tell())))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(self._size + offset) if whence == os.SEEK_END else self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _boxes(data: bytes | bytearray) -> Iterator[tuple[bytes, int]]:
    """The type and the size of the complete top-level boxes."""
    start = 0
    while start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > len(data):
            return
        yield kind, size
        start += size


_SKIPPED = {b"stsd": 8, b"avc1": 78, b"vp09": 78}
"""Bytes of these boxes before the boxes in them; the others on the way have none."""


def _child(data: bytes, *path: bytes) -> bytes | None:
    """The content of a box, found by the types of the boxes around it; ``None`` if there is none."""
    for name in path:
        start = 0
        for kind, size in _boxes(data):
            if kind == name:
                data = data[start + 8 + _SKIPPED.get(name, 0) : start + size]
                break
            start += size
        else:
            return None
    return data
