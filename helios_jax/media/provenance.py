"""Marks that identify files written by this library, so that it never replaces other files.

    mp4     a ``uuid`` box (ISO/IEC 14496-12, 11.1): after ``ftyp`` while a video grows, at the end of a finished one
    PNG     a private chunk that PNG editors must drop when they change the picture (PNG specification, 14.2)
    JSON    an object with the version of this library at the key "helios_jax"

Tools that edit or convert a file do not copy the mark, so their results do not count as ours.
"""

import json
import os
import pathlib
import struct
import zlib

from helios_jax.typing import Path
from helios_jax.version import __version__

_UUID = bytes.fromhex("7e1b0c52d0a94d3f8f6e68656c696f73")
_MARK = struct.pack(">I4s16s16s", 40, b"uuid", _UUID, f"helios_jax {__version__}".encode()[:16].ljust(16))
_MARK_START = struct.pack(">I4s16s", 40, b"uuid", _UUID)

MP4_START = struct.pack(">I4s4sI4s4s4s", 28, b"ftyp", b"iso5", 512, b"iso5", b"iso6", b"mp41") + _MARK
"""The first bytes of a growing video: the file type for fragmented mp4, and our mark."""

MP4_END = _MARK
"""The last bytes of a finished video."""

PNG_CHUNK = b"hlXS"
"""Ancillary, private, and unsafe to copy, as the case of its letters says."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JSON_LIMIT = 16 << 20


def written_by_us(path: Path) -> bool:
    """Whether this library wrote the mp4, PNG or JSON file at ``path``, by its mark; a few bytes are read.

    True also for videos that are growing or were interrupted, and for contact sheets that are not drawn yet. False for
    a file that is missing, empty or unreadable, and for a folder.
    """
    path = pathlib.Path(path)
    try:
        if not path.is_file():
            return False
        if path.suffix.lower() == ".json":
            return _is_our_json(path)
        with open(path, "rb") as file:
            start = file.read(4096)
            file.seek(max(0, os.fstat(file.fileno()).st_size - len(_MARK)))
            end = file.read(len(_MARK))
    except OSError:
        return False
    if start.startswith(_PNG_SIGNATURE):
        return PNG_CHUNK in _png_chunks(start)
    return start[28:].startswith(_MARK_START) or end.startswith(_MARK_START)


def empty_png() -> bytes:
    """A black PNG of one pixel with our mark, a placeholder until the picture is drawn."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (PNG_CHUNK, b"helios_jax"),
        (b"IDAT", zlib.compress(bytes(2))),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return _PNG_SIGNATURE + b"".join(parts)


def _is_our_json(path: pathlib.Path) -> bool:
    if path.stat().st_size > _JSON_LIMIT:
        return False
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("helios_jax"), str)


def _png_chunks(data: bytes) -> list[bytes]:
    """The types of the chunks that begin in ``data``."""
    kinds, start = [], len(_PNG_SIGNATURE)
    while start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        kinds.append(kind)
        start += size + 12
    return kinds
