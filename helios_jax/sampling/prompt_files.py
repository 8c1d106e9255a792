"""Prompt files: the texts and other inputs of many videos.

A ``.txt`` file has one prompt per line; the name of the video is the line's number, blank lines are skipped. A ``.csv``
file has a header and these columns, of which ``id`` and ``prompt`` are required:

    id                the name of the video
    prompt            its text
    refined_prompt    a text that replaces the one in ``prompt`` where it is not empty
    prompt_index      the order of the prompts of one id, for videos with several prompts: 0, 1, 2, ...
    negative_prompt, image, video, seed
                      override the flags of these names for this video; empty: the flag's value. Paths are relative to
                      the file. If an id has several rows, only one of them has to give these values.

This module imports nothing heavy.
"""

import csv
import dataclasses
import io
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Mapping

from helios_jax._warnings import warn_user
from helios_jax.sampling.settings import MAX_SEED
from helios_jax.user_input import did_you_mean, plain_name, user_path, whole_number

REQUIRED = ("id", "prompt")
OPTIONS = ("negative_prompt", "image", "video", "seed")
COLUMNS = (*REQUIRED, "refined_prompt", "prompt_index", *OPTIONS)

MAX_BYTES = 64 << 20
"""Largest prompt file. It is far above what texts need; a larger file was probably given by mistake."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedVideo:
    """One video of a prompt file.

    Attributes:
        name: Its id, or the number of its line: the plain name of a file.
        line: Line of the file on which it begins.
        prompts: Its texts, in order.
        negative_prompt: Overrides the flag; ``None``: not given.
        image: Likewise.
        video: Likewise.
        seed: Likewise; -1 draws one.
    """

    name: str
    line: int
    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    image: pathlib.Path | None = None
    video: pathlib.Path | None = None
    seed: int | None = None


def read_prompt_file(path: str | os.PathLike[str]) -> tuple[PromptedVideo, ...]:
    """Reads the videos of a prompt file, in the file's order.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: Not a .txt or .csv file in UTF-8, a missing or doubled column, a bad row, two ids that would share a
            file, or no prompts at all; the message names the file and the line.
    """
    path = user_path(path, "prompt file")
    kind = path.suffix.lower()
    if kind not in (".txt", ".csv"):
        raise ValueError(f"{path}: prompts are read from .txt or .csv files, not from {path.suffix!r}")
    text = _text(path)
    videos = tuple(_lines(text) if kind == ".txt" else _videos(path, text))
    if not videos:
        raise ValueError(f"{path} holds no prompts")
    seen: dict[str, PromptedVideo] = {}
    for video in videos:
        # Some file systems treat these names as equal.
        key = unicodedata.normalize("NFC", video.name).casefold()
        if other := seen.get(key):
            raise ValueError(
                f"{path}, line {video.line}: the id {video.name!r} differs from {other.name!r} in line {other.line} "
                "only by case or accents; their files would collide, so rename one"
            )
        seen[key] = video
    return videos


def _text(path: pathlib.Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"the prompt file {path} does not exist (looked in {pathlib.Path.cwd()})")
    if not path.is_file():
        raise ValueError(f"the prompt file {path} is not a file; give the path of one .txt or .csv file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size >> 20} MiB; a prompt file has at most {MAX_BYTES >> 20}")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte {error.start} is not UTF-8 text; save the file with the encoding UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}, line {line}: holds a NUL character, so it is not a text file in UTF-8")
    return text


def _lines(text: str) -> Iterator[PromptedVideo]:
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        if prompt := line.strip():
            yield PromptedVideo(name=str(number), line=number, prompts=(prompt,))


@dataclasses.dataclass(kw_only=True)
class _Rows:
    """The rows of one id."""

    line: int
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    options: dict[str, str] = dataclasses.field(default_factory=dict)


def _videos(path: pathlib.Path, text: str) -> Iterator[PromptedVideo]:
    found: dict[str, _Rows] = {}
    for line, row in _rows(path, text):
        where = f"{path}, line {line}"
        name = plain_name(row["id"], f"{where}: id")
        prompt = row.get("refined_prompt", "").strip() or row["prompt"].strip()
        if not prompt:
            raise ValueError(f"{where}: the prompt is empty")
        rows = found.setdefault(name, _Rows(line=line))
        index = _index(row.get("prompt_index", "0"), where)
        if index in rows.texts:
            raise ValueError(
                f"{where}: id {name!r} has prompt_index {index} twice; "
                "number the prompts of one id in the column prompt_index"
            )
        rows.texts[index] = prompt
        for option in OPTIONS:
            value = row.get(option, "").strip()
            if value and rows.options.setdefault(option, value) != value:
                raise ValueError(
                    f"{where}: id {name!r} has {option}={value!r} here and {rows.options[option]!r} before; "
                    "one video has one, so leave the others empty"
                )
    for name, rows in found.items():
        first_free = next(index for index in itertools.count() if index not in rows.texts)
        if first_free < (last := max(rows.texts)):
            raise ValueError(
                f"{path}, line {rows.line}: id {name!r} has prompt_index {last} and no {first_free}; number the "
                "prompts of one id 0, 1, 2, ..."
            )
        prompts = tuple(rows.texts[index] for index in sorted(rows.texts))
        yield _prompted_video(path, name, rows.line, prompts, rows.options)


def _prompted_video(
    path: pathlib.Path, name: str, line: int, prompts: tuple[str, ...], options: Mapping[str, str]
) -> PromptedVideo:
    where = f"{path}, line {line}"

    def beside(option: str) -> pathlib.Path | None:
        return path.parent / user_path(options[option], f"{where}: {option}") if option in options else None

    if "image" in options and "video" in options:
        raise ValueError(f"{where}: image and video are both given; use one")
    seed = None
    if "seed" in options:
        text = options["seed"]
        number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,20}", text) else text
        seed = whole_number(number, f"{where}: seed", at_least=-1, at_most=MAX_SEED)
    return PromptedVideo(
        name=name,
        line=line,
        prompts=prompts,
        negative_prompt=options.get("negative_prompt"),
        image=beside("image"),
        video=beside("video"),
        seed=seed,
    )


def _index(text: str, where: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text.strip()):
        raise ValueError(f"{where}: prompt_index={text[:40]!r} must be a number, 0, 1, 2, ...")
    return int(text)


def _rows(path: pathlib.Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows after the header with their first lines; unknown columns are dropped."""
    records = _records(path, text)
    _, header = next(records, (1, []))
    columns = [name.strip() for name in header]
    _check_columns(path, columns)
    for line, fields in records:
        if len(fields) > len(columns):
            raise ValueError(
                f"{path}, line {line}: more than {len(columns)} fields; put quotes around text with commas"
            )
        fields += [""] * (len(columns) - len(fields))
        yield line, {name: field for name, field in zip(columns, fields, strict=True) if name in COLUMNS}


def _check_columns(path: pathlib.Path, columns: list[str]) -> None:
    if missing := sorted(set(REQUIRED) - set(columns)):
        hint = "; separate columns with commas" if any(";" in name or "\t" in name for name in columns) else ""
        hint = hint or "".join(did_you_mean(name, [c for c in columns if c not in COLUMNS]) for name in missing[:1])
        raise ValueError(f"{path}, line 1: missing columns {missing}, found {columns[:12]}{hint}")
    if doubled := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"{path}, line 1: the columns {doubled} appear twice")
    unknown = [name for name in columns if name not in COLUMNS]
    for name in unknown:
        if hint := did_you_mean(name.lower().replace(" ", "_"), COLUMNS):
            raise ValueError(f"{path}, line 1: unknown column {name!r}{hint}")
    if unknown:
        warn_user(f"{path}: the columns {unknown[:12]} are ignored; known columns: {', '.join(COLUMNS)}")


def _records(path: pathlib.Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a csv text with their first lines; blank records are skipped."""
    # This limit applies to all csv readers of the process. Its default is shorter than prompts can be.
    limit = csv.field_size_limit(MAX_BYTES)
    begin, records = 1, []
    try:
        # In strict mode, text after a closing quote is an error; otherwise a forgotten quote would merge rows.
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        while (fields := next(reader, None)) is not None:
            if any(field.strip() for field in fields):
                records.append((begin, fields))
                if reader.line_num > begin:
                    warn_user(
                        f"{path}: the row that begins in line {begin} has a text that continues to line "
                        f"{reader.line_num}; if that is not intended, close the quote"
                    )
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}: the row that begins in line {begin} cannot be read ({error}); "
            "a quote in it is never closed, or is not doubled within a quoted text"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return iter(records)
