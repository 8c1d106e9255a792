"""Video files for tests: numbered frames in any container and codec, without loss where it matters."""

import pathlib
import struct
from fractions import Fraction

import av
import numpy as np


def numbered(count: int, height: int = 16, width: int = 32) -> np.ndarray:
    """Frames that show their number in binary, one bit per column of four pixels, uint8 [F, H, W, 3]."""
    bits = np.arange(count)[:, None] >> np.arange(width // 4) & 1
    return np.broadcast_to((16 + 200 * bits).astype(np.uint8).repeat(4, 1)[:, None, :, None], (count, height, width, 3))


def read_number(frame: np.ndarray) -> int:
    """Inverse of ``numbered`` for one frame, also after lossy compression."""
    return sum(int(value > 116) << bit for bit, value in enumerate(frame[frame.shape[0] // 2, 1::4, 0]))


def write_film(
    path: pathlib.Path, clip: np.ndarray, *, codec: str = "libx264", times: list[Fraction] | None = None, **options: str
) -> pathlib.Path:
    """Encodes ``clip``; the ending of ``path`` chooses the container.

    ``times`` are when frames are shown, in seconds; 24 frames per second by default.
    """
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "bgr24" if codec == "libx264rgb" else "yuv420p"
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 90_000)
        for number, pixels in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[number] * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_lossless(path: pathlib.Path, clip: np.ndarray, **options: str) -> pathlib.Path:
    """H.264 in RGB at quantiser 0, which decodes to exactly ``clip``."""
    return write_film(path, clip, codec="libx264rgb", qp="0", **options)


def turn(data: bytes, matrix: tuple[float, float, float, float]) -> bytes:
    """An mp4 whose display matrix [[a, b], [c, d]] is replaced."""
    a, b, c, d = (round(n * (1 << 16)) for n in matrix)
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    start = data.index(identity, data.index(b"tkhd"))
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return data[:start] + turned + data[start + 36 :]
