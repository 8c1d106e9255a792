"""Whether a file holds all bytes that its container announces. FFmpeg reads truncated files without an error."""

import pathlib


def is_cut_off(path: pathlib.Path) -> bool:
    """Whether a Matroska, WebM or AVI file is truncated; ``False`` if the file does not state its size.

    For mp4, FFmpeg itself marks packets with missing bytes as damaged.
    """
    with open(path, "rb") as file:
        start = file.read(4096)
    announced = _matroska_end(start) if start.startswith(_EBML) else _riff_end(start)
    return announced is not None and announced > path.stat().st_size


_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def _riff_end(start: bytes) -> int | None:
    """Where the first chunk of a RIFF file ends."""
    if not start.startswith(b"RIFF") or len(start) < 12:
        return None
    size = int.from_bytes(start[4:8], "little")
    return None if size in (0, 0xFFFFFFFF) else size + 8


def _matroska_end(start: bytes) -> int | None:
    """Where the segment of a Matroska file ends (RFC 8794: sizes are integers of variable length)."""
    header = _element_size(start, len(_EBML))
    if header is None:
        return None
    position = header[0] + header[1]
    segment = _element_size(start, position + len(_SEGMENT))
    if start[position : position + len(_SEGMENT)] != _SEGMENT or segment is None:
        return None
    return segment[0] + segment[1]


def _element_size(data: bytes, position: int) -> tuple[int, int] | None:
    """Reads the size at ``position``: (start of the content, size), or ``None`` if it is unknown or missing."""
    if position >= len(data) or data[position] == 0:
        return None
    length = 9 - data[position].bit_length()
    value = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
    unknown = value == (1 << 7 * length) - 1
    return None if unknown or position + length > len(data) else (position + length, value)
