"""Lists of clips: JSON files of cuts, and folders of videos with captions."""

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from helios_jax.data.prepare.file_clips import AS_PUBLISHED, FileClip, ReadOptions
from helios_jax.typing import Path
from helios_jax.user_input import finite_number, user_path, whole_number

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")
"""File extensions of videos in folders, in upper or lower case."""


def clips_from_json(file: Path, root: Path | None = None, options: ReadOptions = AS_PUBLISHED) -> list[FileClip]:
    """Reads a list of cuts: ``path``, ``cut`` [start, end), ``crop`` [x0, x1, y0, y1], ``fps`` and ``cap``.

    Only the path is required. If ``cap`` is a list, its first caption is used; a clip without a caption is reported
    when its turn comes.

    Args:
        file: The list.
        root: Folder that contains all videos; paths are relative to it. The default is the folder of ``file``.
        options: How the files are read.

    Raises:
        FileNotFoundError: The list, or every video in it, is missing.
        ValueError: It is not such a list, a path leads out of the root, or two entries are the same cut.
    """
    file = user_path(file, "clips")
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: give a JSON list of clips, or a folder of videos")
    if file.suffix.lower() in VIDEO_SUFFIXES:
        raise ValueError(f"{file} is one video: give a JSON list of clips, or the folder of the video")
    entries = _read_json(file)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file} must hold a list of at least one clip")
    root = file.parent if root is None else user_path(root, "root")
    clips = [_file_clip(entry, root, f"clip {number} of {file}", options) for number, entry in enumerate(entries)]
    _check_unique(clips, file)
    if not any(clip.path.is_file() for clip in clips):
        raise FileNotFoundError(
            f"none of the {len(clips)} videos of {file} exists; the first would be {clips[0].path} (is the root right?)"
        )
    return clips


def clips_from_folder(folder: Path, options: ReadOptions = AS_PUBLISHED) -> list[FileClip]:
    """The videos of a folder and its subfolders, each with its caption in a .txt file of the same name.

    A clip has the name of its file without the extension, or with it if several files differ only in their extension.
    Hidden files are ignored.

    Raises:
        FileNotFoundError: The folder contains no video.
        ValueError: A caption is not UTF-8.
    """
    folder = user_path(folder, "clips")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES]
    paths = [path for path in paths if not path.name.startswith(".")]
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    shared = collections.Counter(names)
    clips = []
    for path, name in zip(paths, names, strict=True):
        uid = name if shared[name] == 1 else path.relative_to(folder).as_posix()
        clips.append(FileClip(uid=uid, caption=_caption(path), stored_fps=0.0, path=path, options=options))
    if not clips:
        raise FileNotFoundError(f"no video in {folder} (looked for {', '.join(VIDEO_SUFFIXES)})")
    return clips


def _caption(video: pathlib.Path) -> str:
    file = video.with_suffix(".txt")
    try:
        return file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"the caption {file} is not UTF-8: {error.reason} at byte {error.start}") from error


def _read_json(file: pathlib.Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def _file_clip(entry: Any, root: pathlib.Path, where: str, options: ReadOptions) -> FileClip:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
        raise ValueError(f"{where} must be an object with a path, got {entry!r:.80}")
    cut, crop = (_numbers(entry, name, count, where) for name, count in (("cut", 2), ("crop", 4)))
    if cut and not 0 <= cut[0] < cut[1]:
        raise ValueError(f"{where}: cut {list(cut)} is not [start, end) with 0 <= start < end")
    if crop and not (0 <= crop[0] < crop[1] and 0 <= crop[2] < crop[3]):
        raise ValueError(f"{where}: crop {list(crop)} is not [x0, x1, y0, y1] with 0 <= x0 < x1 and 0 <= y0 < y1")
    fps = entry.get("fps")
    return FileClip(
        uid=entry["path"] + (f"[{cut[0]}:{cut[1]}]" if cut else ""),
        caption=_first_caption(entry.get("cap"), where),
        stored_fps=0.0 if fps is None else finite_number(fps, f"{where}: fps", at_least=0, at_most=1000),
        path=_path_inside(entry["path"], root, where),
        cut=cut,
        crop=crop,
        options=options,
    )


def _path_inside(name: str, root: pathlib.Path, where: str) -> pathlib.Path:
    path = root / user_path(name, f"{where}: path")
    # Only the path as written is checked: symbolic links inside the folder may point anywhere.
    outside = ".." in path.relative_to(root).parts if path.is_relative_to(root) else True
    if outside:
        raise ValueError(f"{where}: path={name!r} leads out of {root}; give --root, a folder that holds all videos")
    return path


def _first_caption(caption: Any, where: str) -> str:
    texts = caption if isinstance(caption, list) else [] if caption is None else [caption]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: cap must be a text or a list of texts, got {caption!r:.80}")
    return texts[0].strip() if texts else ""


def _numbers(entry: Mapping[str, Any], name: str, count: int, where: str) -> Any:
    """``count`` integers, or ``None`` when they are not given."""
    values = entry.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{where}: {name} must be {count} integers, got {values!r:.80}")
    return tuple(whole_number(value, f"{where}: {name}") for value in values)


def _check_unique(clips: Sequence[FileClip], file: pathlib.Path) -> None:
    first: dict[str, int] = {}
    for number, clip in enumerate(clips):
        if first.setdefault(clip.uid, number) != number:
            raise ValueError(f"clips {first[clip.uid]} and {number} of {file} are the same cut, {clip.uid}")
