"""The folder of an evaluation: a JSON record for each measured video, so that an interrupted run can be resumed.

settings.json                    what is evaluated and how
records/<part>/<name>.json       what was found in a video
shown/<part>/<name>.png          frames of the first videos, side by side
scores.json, report.html         written from the records at the end of every run
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from helios_jax.safe_files import claimed, read_object, replace_text
from helios_jax.version import __version__

SETTINGS, SCORES, REPORT, RECORDS, SHOWN = "settings.json", "scores.json", "report.html", "records", "shown"

Record = dict[str, Any]
"""The fields of a ``VideoInfo``, and ``values``, ``curves`` and ``details`` of a ``Result``; of a sampled video also
``seconds`` and ``cold``: it was made first, while programs were compiled."""


class Records:
    """The records in a folder; made by ``open_records``.

    Attributes:
        folder: The folder of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, part: str, name: str) -> bool:
        """Whether the video has been measured."""
        return self._file(part, name).is_file()

    def write(self, part: str, record: Record) -> None:
        """Writes a record, whole or not at all."""
        file = self._file(part, record["name"])
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(record) + "\n")

    def read(self, part: str, name: str) -> Record:
        """Reads a record."""
        file = self._file(part, name)
        return read_object(file, "remove it to measure the video again")

    def shown(self, part: str, name: str) -> Path:
        """The picture of a video's frames."""
        return self.folder / SHOWN / part / f"{name}.png"

    def publish(self, name: str, text: str) -> None:
        """Writes a file of results unless it has this content already."""
        file = self.folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            replace_text(file, text)

    def _file(self, part: str, name: str) -> Path:
        return self.folder / RECORDS / part / f"{name}.json"


@contextlib.contextmanager
def open_records(folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Records]:
    """Opens or resumes an evaluation in ``folder``, which only one process can do at a time.

    Args:
        folder: The folder, which is created.
        settings: All that decides what the records hold, as JSON. A folder with other settings is refused.
        overwrite: Remove the evaluation in the folder if it has other settings. Other files are not touched.

    Raises:
        ValueError: The folder holds an evaluation with other settings; the message names them.
        FileExistsError: The folder holds files with the names of an evaluation's, but no settings.
        BlockingIOError: Another process evaluates into this folder.
    """
    settings = json.loads(json.dumps(settings))
    check_settings(folder, settings, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder / "evaluating.lock", f"{folder} is being written"):
        # Checked again, because another process may have been at work in the meantime.
        if not check_settings(folder, settings, overwrite=overwrite):
            for name in (RECORDS, SHOWN):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in (SCORES, REPORT):
                (folder / name).unlink(missing_ok=True)
            content = {"helios_jax": __version__, "settings": settings}
            replace_text(folder / SETTINGS, json.dumps(content, indent=1) + "\n")
        yield Records(folder)


def check_settings(folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> bool:
    """Whether the folder holds an evaluation with these settings; see ``open_records`` for what is refused."""
    if not (folder / SETTINGS).is_file():
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"--out={folder} is a file; give a folder")
        if (found := [name for name in (RECORDS, SCORES, REPORT) if (folder / name).exists()]) and not overwrite:
            raise FileExistsError(f"{folder} has {found[0]} but no {SETTINGS}; choose another --out")
        return False
    then = read_object(folder / SETTINGS, "choose another --out").get("settings")
    now = json.loads(json.dumps(settings))
    if then == now:
        return True
    if not overwrite:
        changed = _changes(then if isinstance(then, dict) else {}, now)
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"{folder} holds an evaluation with other settings: {'; '.join(changed[:3])}{more}; choose another --out, "
            "or pass --overwrite to remove it"
        )
    return False


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    def short(settings: Mapping[str, Any], name: str) -> str:
        text = json.dumps(settings[name]) if name in settings else "not given"
        return text if len(text) <= 48 else f"{text[:48]}..."

    names = [*now, *(name for name in then if name not in now)]
    return [f"{n} was {short(then, n)}, now {short(now, n)}" for n in names if then.get(n, ...) != now.get(n, ...)]
