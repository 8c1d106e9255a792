"""What a JSON list says of a clip."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from helios_jax.typing import Path


class ClipError(ValueError):
    """A clip that cannot be used.

    Attributes:
        problem: Its kind: "metadata", "missing", "short", "resolution" or "damaged".
    """

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipMetadata:
    """A captioned part of a video file.

    Attributes:
        path: The file, relative to the folder of the corpus.
        caption: The text.
        cut: First frame, and the one behind the last.
        crop: Columns (x0, x1) and rows (y0, y1) to keep, in pixels, the second of each pair excluded.
        height: Pixel rows of the file.
        width: Pixel columns of the file.
        fps: Frames per second.

    Raises:
        ClipError: There is no caption, the cut is empty, the crop is empty or leaves the frame, or fps is not
            positive.
    """

    path: str
    caption: str
    cut: tuple[int, int]
    crop: tuple[int, int, int, int]
    height: int
    width: int
    fps: float

    def __post_init__(self) -> None:
        start, stop = self.cut
        x0, x1, y0, y1 = self.crop
        if not self.path:
            raise ClipError("metadata", "path is empty")
        if not self.caption.strip():
            raise ClipError("metadata", f"{self.path} has no caption: cap must hold a text")
        if not 0 <= start < stop:
            raise ClipError("metadata", f"{self.path}: cut {list(self.cut)} is not [start, end) with 0 <= start < end")
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise ClipError(
                "metadata",
                f"{self.path}: crop {list(self.crop)} is not [x0, x1, y0, y1] with 0 <= x0 < x1 <= {self.width} and "
                f"0 <= y0 < y1 <= {self.height}, the frame",
            )
        if not self.fps > 0:
            raise ClipError("metadata", f"{self.path}: fps must be positive, got {self.fps}")

    @property
    def num_frames(self) -> int:
        """Length of the cut."""
        return self.cut[1] - self.cut[0]

    @property
    def name(self) -> str:
        """The file and the cut."""
        return f"{self.path}[{self.cut[0]}:{self.cut[1]}]"

    @classmethod
    def from_json(cls, entry: Any) -> "ClipMetadata":
        """Reads one entry of a list; of several captions (``cap`` is a list) the first is used.

        Raises:
            ClipError: A field is missing, has another type, or its value makes no sense.
        """
        if not isinstance(entry, Mapping):
            raise ClipError(
                "metadata", f"expected an object with path, cut, crop, resolution, fps, cap; got {entry!r:.80}"
            )
        resolution = _get(entry, "resolution", Mapping)
        captions = _get(entry, "cap", str | list)
        caption = captions if isinstance(captions, str) else (captions[0] if captions else "")
        if not isinstance(caption, str):
            raise ClipError(
                "metadata", f"{entry.get('path')}: cap must be a text or a list of texts, got {captions!r:.80}"
            )
        return cls(
            path=_get(entry, "path", str),
            caption=caption,
            cut=_integers(entry, "cut", 2),
            crop=_integers(entry, "crop", 4),
            height=_get(resolution, "height", int),
            width=_get(resolution, "width", int),
            fps=float(_get(entry, "fps", int | float)),
        )


def read_clip_list(file: Path) -> list[Any]:
    """The entries of a JSON list, still unchecked, for ``ClipMetadata.from_json``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a JSON list, or empty.
    """
    file = pathlib.Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no list of clips {file}")
    try:
        entries = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file} must hold a JSON list with at least one clip")
    return entries


def _get(entry: Mapping[str, Any], name: str, kind: Any) -> Any:
    value = entry.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        what = "is missing" if value is None else f"has the wrong type, {value!r:.80}"
        raise ClipError("metadata", f"{entry.get('path', 'a clip')}: {name} {what}")
    return value


def _integers(entry: Mapping[str, Any], name: str, count: int) -> Any:
    values = _get(entry, name, list)
    if len(values) != count or not all(isinstance(value, int) for value in values):
        raise ClipError(
            "metadata", f"{entry.get('path', 'a clip')}: {name} must be {count} integers, got {values!r:.80}"
        )
    return tuple(values)
