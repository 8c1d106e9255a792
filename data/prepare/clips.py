"""Sources of clips: a JSON list of cuts, a folder of videos with captions, or the world of moving shapes.

A clip is described first and read later, on whichever host encodes it. Its frames are cropped as the list says,
then to the wanted aspect around the centre, and resized in one step with PIL's Lanczos filter, as conditioning
images are. All stored frames are taken, whatever their rate.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from helios_jax.media.decoding import read_frames
from helios_jax.media.files import ClipError
from helios_jax.media.resizing import PixelSize, centre_crop, resize
from helios_jax.typing import Path, UInt8

if TYPE_CHECKING:
    from helios_jax.data.moving_shapes.world import Scene


@runtime_checkable
class Clip(Protocol):
    """A clip, before it is read.

    Attributes:
        uid: Its name, unique in the dataset.
        caption: Its text.
        fps: Frames per second; 0 when unknown.
    """

    uid: str
    caption: str
    fps: float

    def aspect(self) -> float | None:
        """Width over height; ``None`` when any will do.

        Raises:
            ClipError: The clip cannot be opened.
        """
        ...

    def read(self, size: PixelSize, max_frames: int) -> UInt8[np.ndarray, "F H W 3"]:
        """Frames of that size, at most ``max_frames`` of them.

        Raises:
            ClipError: The clip cannot be read.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileClip:
    """A part of a video file; a ``Clip``.

    Attributes:
        uid: See ``Clip``.
        caption: See ``Clip``.
        fps: See ``Clip``.
        path: The file.
        cut: First frame, and the one after the last; ``None``: all frames.
        crop: Columns (x0, x1) and rows (y0, y1) to keep, in pixels; ``None``: everything.
    """

    uid: str
    caption: str
    fps: float
    path: pathlib.Path
    cut: tuple[int, int] | None = None
    crop: tuple[int, int, int, int] | None = None

    def aspect(self) -> float:
        """See ``Clip``; reads the first frame unless there is a crop."""
        if self.crop is not None:
            x0, x1, y0, y1 = self.crop
            return (x1 - x0) / (y1 - y0)
        first = next(self._frames(0, 1), None)
        if first is None:
            raise ClipError(f"{self.path} holds no frames")
        return first.shape[1] / first.shape[0]

    def read(self, size: PixelSize, max_frames: int) -> UInt8[np.ndarray, "F H W 3"]:
        """See ``Clip``."""
        start, stop = self.cut or (0, None)
        stop = min(start + max_frames, stop or start + max_frames)
        # A buffer that grows in place: a list of frames and its stack would need twice the memory.
        pixels = bytearray()
        for frame in self._frames(start, stop):
            pixels += self._fit(frame, size).tobytes()
        frames = np.frombuffer(pixels, np.uint8).reshape(-1, *size, 3)
        if self.cut and start + len(frames) < stop:
            raise ClipError(f"{self.path} ends after {start + len(frames)} frames, the cut is {list(self.cut)}")
        return frames

    def _frames(self, start: int, stop: int) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        # A missing file is one bad clip of many, not the end of the job.
        if not self.path.is_file():
            raise ClipError(f"there is no file {self.path}")
        return read_frames(self.path, start, stop)

    def _fit(self, frame: UInt8[np.ndarray, "H W 3"], size: PixelSize) -> UInt8[np.ndarray, "h w 3"]:
        rows, columns = frame.shape[:2]
        crop = self.crop or (0, columns, 0, rows)
        if crop[1] > columns or crop[3] > rows:
            raise ClipError(f"{self.path} has frames of {rows} x {columns}, the crop [x0, x1, y0, y1] is {list(crop)}")
        return resize(frame, *size, box=centre_crop(crop, size))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesClip:
    """A scene of the world of moving shapes; a ``Clip``.

    Attributes:
        seed: The world.
        index: The scene.
        frames: How many frames.
        num_shapes: Shapes in it; ``None``: 1 to 3.
        fps: See ``Clip``.
    """

    seed: int
    index: int
    frames: int
    num_shapes: int | None = None
    fps: float = 24.0

    @property
    def uid(self) -> str:
        """See ``Clip``."""
        kind = "" if self.num_shapes is None else f"{self.num_shapes}-"
        return f"moving_shapes-{kind}{self.seed}-{self.index}"

    @functools.cached_property
    def scene(self) -> "Scene":
        """The scene itself."""
        from helios_jax.data.moving_shapes.world import sample_scene

        return sample_scene(self.seed, self.index, num_shapes=self.num_shapes)

    @property
    def caption(self) -> str:
        """See ``Clip``."""
        from helios_jax.data.moving_shapes.captions import caption

        return caption(self.scene)

    def aspect(self) -> None:
        """See ``Clip``."""

    def read(self, size: PixelSize, max_frames: int) -> UInt8[np.ndarray, "F H W 3"]:
        """See ``Clip``."""
        from helios_jax.data.moving_shapes.rendering import render

        return render(self.scene, min(self.frames, max_frames), *size)


def clips_from_json(file: Path, root: Path | None = None) -> list[FileClip]:
    """Reads a list of cuts: ``path``, ``cut`` [start, end), ``crop`` [x0, x1, y0, y1], ``fps`` and ``cap``.

    Only the path is required. If ``cap`` is a list, its first caption is used; a clip without a caption is reported
    when its turn comes.

    Args:
        file: The list.
        root: Folder that the paths are relative to; that of ``file`` by default.

    Raises:
        FileNotFoundError: The list, or every video in it, is missing.
        ValueError: It is not such a list, or two entries are the same cut.
    """
    file = pathlib.Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: give a JSON list of clips, or a folder of videos")
    try:
        entries = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file} must hold a list of at least one clip")
    root = file.parent if root is None else pathlib.Path(root)
    clips = [_file_clip(entry, root, f"clip {number} of {file}") for number, entry in enumerate(entries)]
    _check_unique(clips, file)
    if not any(clip.path.is_file() for clip in clips):
        raise FileNotFoundError(
            f"none of the {len(clips)} videos of {file} exists; the first would be {clips[0].path} (is the root right?)"
        )
    return clips


def clips_from_folder(folder: Path) -> list[FileClip]:
    """The mp4 files of a folder and its subfolders, each with its caption in a .txt file of the same name.

    Raises:
        FileNotFoundError: There is no such file.
    """
    folder = pathlib.Path(folder)
    clips = []
    for path in sorted(folder.rglob("*.mp4")):
        text = path.with_suffix(".txt")
        caption = text.read_text().strip() if text.is_file() else ""
        uid = path.relative_to(folder).with_suffix("").as_posix()
        clips.append(FileClip(uid=uid, caption=caption, fps=0.0, path=path))
    if not clips:
        raise FileNotFoundError(f"no mp4 file in {folder}")
    return clips


def _file_clip(entry: Any, root: pathlib.Path, where: str) -> FileClip:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
        raise ValueError(f"{where} must be an object with a path, got {entry!r:.80}")
    caption = entry.get("cap")
    caption = caption[0] if isinstance(caption, list) and caption else caption
    cut, crop = (_numbers(entry, name, count, where) for name, count in (("cut", 2), ("crop", 4)))
    if cut and not 0 <= cut[0] < cut[1]:
        raise ValueError(f"{where}: cut {list(cut)} is not [start, end) with 0 <= start < end")
    if crop and not (0 <= crop[0] < crop[1] and 0 <= crop[2] < crop[3]):
        raise ValueError(f"{where}: crop {list(crop)} is not [x0, x1, y0, y1] with 0 <= x0 < x1 and 0 <= y0 < y1")
    return FileClip(
        uid=entry["path"] + (f"[{cut[0]}:{cut[1]}]" if cut else ""),
        caption=caption.strip() if isinstance(caption, str) else "",
        fps=float(entry.get("fps") or 0.0),
        path=root / entry["path"],
        cut=cut,
        crop=crop,
    )


def _numbers(entry: Mapping[str, Any], name: str, count: int, where: str) -> Any:
    """``count`` integers, or ``None`` when they are not given."""
    values = entry.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count or not all(isinstance(value, int) for value in values):
        raise ValueError(f"{where}: {name} must be {count} integers, got {values!r}")
    return tuple(values)


def _check_unique(clips: Sequence[FileClip], file: pathlib.Path) -> None:
    first: dict[str, int] = {}
    for number, clip in enumerate(clips):
        if first.setdefault(clip.uid, number) != number:
            raise ValueError(f"clips {first[clip.uid]} and {number} of {file} are the same cut, {clip.uid}")
