"""Prompts of an evaluation, with the number of frames that each asks for.

A csv file may have the column ``duration``, in frames, as that of HeliosBench has: ``id,prompt,duration``.
"""

import csv
import dataclasses
import warnings
from pathlib import Path

from helios_jax.sampling.prompt_files import read_prompt_file
from helios_jax.user_input import whole_number, whole_number_in


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkPrompt:
    """A prompt of a file.

    Attributes:
        id: Its id, or the number of its line.
        text: The prompt.
        duration: Frames that it asks for; ``None``: not stated.
    """

    id: str
    text: str
    duration: int | None = None


def read_prompts(file: Path) -> list[BenchmarkPrompt]:
    """Reads the prompts of a txt or csv file, see ``sampling.prompt_files``.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It cannot be read, a video has several prompts, or a duration is no number of frames.
    """
    with warnings.catch_warnings():
        # Columns that sampling ignores, such as the duration.
        warnings.simplefilter("ignore")
        videos = read_prompt_file(file)
    if several := [video for video in videos if len(video.prompts) > 1]:
        raise ValueError(
            f"{file}, line {several[0].line}: id {several[0].name!r} has several prompts; give one for each"
        )
    durations = _durations(file) if file.suffix.lower() == ".csv" else {}
    return [
        BenchmarkPrompt(id=video.name, text=video.prompts[0], duration=durations.get(video.name)) for video in videos
    ]


def _durations(file: Path) -> dict[str, int]:
    found = {}
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream)
        columns = [name.strip() for name in next(rows, [])]
        if "duration" not in columns:
            return {}
        for row in rows:
            fields = dict(zip(columns, row, strict=False))
            if text := fields.get("duration", "").strip():
                where = f"{file}, line {rows.line_num}: duration"
                try:
                    frames = whole_number_in(text)
                except ValueError:
                    raise ValueError(f"{where}={text[:40]!r} is not a number of frames") from None
                found[fields["id"]] = whole_number(frames, where, at_least=1)
    return found
