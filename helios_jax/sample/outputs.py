"""The files of a video: decides their names and whether they may be written.

``fox.mp4`` comes with ``fox.sheet.png``, its contact sheet, and ``fox.helios.json``, the record that marks it as
finished; while it is made, ``fox.unfinished.json`` is there too. Files that this program did not write are never
replaced, renamed or removed.
"""

import dataclasses
import itertools
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from helios_jax.user_input import MAX_NAME_BYTES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files of one video.

    Attributes:
        video: The mp4; the others follow from it.
    """

    video: Path

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self._named(".sheet.png")

    @property
    def record(self) -> Path:
        """How the video was made; present when it is finished."""
        return self._named(".helios.json")

    @property
    def claim(self) -> Path:
        """The record of a video that is being made; the process that makes it holds a lock on it."""
        return self._named(".unfinished.json")

    @property
    def earlier_record(self) -> Path:
        """The record under the name of versions up to 0.1, which is read but never written."""
        return self._named(".json")

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that is written."""
        return self.video, self.sheet, self.record, self.claim

    def aside(self) -> "Outputs":
        """Free names for the files of an interrupted run."""
        names = (self.interrupted(number) for number in itertools.count(1))
        return next(outputs for outputs in names if not any(map(os.path.lexists, outputs.all)))

    def interrupted(self, number: int) -> "Outputs":
        """The files of an interrupted run, with a number in their names."""
        return Outputs(video=self._named(f".interrupted{number}{self.video.suffix}"))

    def _named(self, ending: str) -> Path:
        return self.video.with_name(self.video.stem + ending)


def check_outputs(outputs: Outputs) -> None:
    """Checks that the files can be written and replace no file of another program; changes nothing.

    Raises:
        ValueError: A name is too long.
        FileExistsError: A file or folder that this program did not write has the name of an output.
        NotADirectoryError: A part of the path is a file.
        PermissionError: The folder cannot be written to.
    """
    video = outputs.video
    names = [path.name for path in (*outputs.all, *outputs.interrupted(999).all)]
    longest = max(names, key=lambda name: len(os.fsencode(name)))
    if (over := len(os.fsencode(longest)) - MAX_NAME_BYTES) > 0:
        raise ValueError(
            f"{video.name[:40]}...: the name is {over} bytes too long: {MAX_NAME_BYTES} are allowed in all, and "
            f"{longest[len(video.stem) :]!r} must fit after it"
        )
    check_folder(video)
    for path in outputs.all:
        if os.path.lexists(path) and not _is_ours(path, outputs):
            kind = "is a folder" if path.is_dir() else "was not written by helios-sample"
            raise FileExistsError(
                f"{path} {kind}, so it is not replaced, with or without --overwrite; choose another --out or move it"
            )


def check_folder(file: Path) -> None:
    """Checks the folder of a file, or the nearest one that exists and in which it would be created.

    Raises:
        NotADirectoryError: A part of the path is a file.
        PermissionError: The folder cannot be written to.
    """
    folder = Path(os.path.abspath(file)).parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {file}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {file}: no permission to write in {folder}")


def _is_ours(path: Path, outputs: Outputs) -> bool:
    """Whether this program wrote a file that exists, which is one of ``outputs``."""
    from helios_jax.media.provenance import written_by_us

    if path.is_symlink() and not path.exists():
        return False
    # A process that is killed between the creation of a file and its first byte leaves an empty one. The claim is
    # created first, and tells that a video or a sheet without a byte is not someone else's.
    if path.is_file() and not path.stat().st_size:
        return path == outputs.claim or (path != outputs.record and written_by_us(outputs.claim))
    return written_by_us(path)


def check_distinct(named: Iterable[tuple[str, Outputs]]) -> None:
    """Checks that no two videos share a file, on file systems that ignore case as well.

    Args:
        named: The origin of each video, for the message, and its files.

    Raises:
        ValueError: Two do.
    """
    taken: dict[str, str] = {}
    for where, outputs in named:
        for path in outputs.all:
            key = unicodedata.normalize("NFC", str(path)).casefold()
            if (other := taken.setdefault(key, where)) != where:
                raise ValueError(f"{where} and {other} would both write {path}; rename one of them")


def check_apart(inputs: Mapping[str, Path], outputs: Iterable[Outputs]) -> None:
    """Checks that no output is an input, by whatever path or link.

    Args:
        inputs: The files and folders that are read, by the flag or the line that names them.
        outputs: The files that are written.

    Raises:
        ValueError: One is both.
    """
    names: dict[str, Path] = {}
    nodes: dict[tuple[int, int], Path] = {}
    for path in (path for each in outputs for path in each.all):
        names[os.path.realpath(path)] = path
        if path.exists():
            status = path.stat()
            nodes[status.st_dev, status.st_ino] = path
    for flag, path in inputs.items():
        found = names.get(os.path.realpath(path))
        if found is None and path.exists():
            status = path.stat()
            found = nodes.get((status.st_dev, status.st_ino))
        if found is not None:
            raise ValueError(f"{flag}={path} is the same file as the output {found}; choose another --out")


def set_aside(outputs: Outputs) -> list[tuple[Path, Path]]:
    """Renames the video and the sheet of an interrupted run, so that a rerun does not overwrite them.

    Returns:
        The old and the new path of each file that was renamed. A video without a byte is removed.
    """
    aside = outputs.aside()
    renamed = []
    for path, target in ((outputs.video, aside.video), (outputs.sheet, aside.sheet)):
        if not os.path.lexists(path) or not _is_ours(path, outputs):
            continue
        if path.stat().st_size:
            renamed.append((path, path.rename(target)))
        else:
            path.unlink()
    return renamed


def remove_earlier(outputs: Outputs) -> None:
    """Removes the files of a finished run before it is repeated; first the record, which marks the run as finished.

    Removing is safer than overwriting: hard links to the file and the target of a symbolic link keep their content.
    """
    for path in (outputs.record, outputs.sheet, outputs.video):
        if os.path.lexists(path) and _is_ours(path, outputs):
            path.unlink()
