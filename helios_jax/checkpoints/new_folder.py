"""Folders that appear only when they are complete."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path as FilePath

from helios_jax.typing import Path
from helios_jax.user_input import user_path


def check_new_folder(target: Path, source: FilePath | None = None) -> FilePath:
    """The folder's path if a checkpoint can be written there.

    Args:
        target: The folder; ``~`` is expanded. ``new_folder`` creates missing parent folders.
        source: The checkpoint that is read, which must stay as it is.

    Raises:
        FileExistsError: It exists and is not an empty folder.
        NotADirectoryError: One of its parents is a file.
        ValueError: It is inside ``source``.
    """
    folder = user_path(target, "the target")
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise FileExistsError(f"{folder} exists and is not empty; choose another folder or remove it first")
    for parent in folder.parents:
        if parent.exists():
            if not parent.is_dir():
                raise NotADirectoryError(f"{folder} cannot be created: {parent} is a file")
            break
    if source is not None and folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{folder} is inside {source}, which is only read; choose a folder outside")
    return folder


@contextlib.contextmanager
def new_folder(target: FilePath) -> Iterator[FilePath]:
    """Yields a folder to write to. It is renamed to ``target`` if the block succeeds, and removed if it fails.

    Until then its name is that of ``target`` with ".unfinished" and the process id, so that leftovers of a killed
    process are easy to recognise.

    Args:
        target: A folder that does not exist, or is empty; see ``check_new_folder``.
    """
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.unfinished{os.getpid()}")
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.rename(target)  # An empty folder is replaced.
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
