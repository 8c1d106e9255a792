"""Where a checkpoint is: a folder, or a repository on the hub. Imports nothing heavy."""

import os
import pathlib
import re

from helios_jax.user_input import user_path

_NAME = r"\w(?:[\w.-]*\w)?"
_ID = re.compile(f"{_NAME}/{_NAME}")


def folder_of(path: str | os.PathLike[str]) -> pathlib.Path | None:
    """The folder that ``path`` names, with ``~`` expanded; ``None`` if it can only be a hub id ("owner/name").

    Raises:
        FileNotFoundError: It is neither.
        ValueError: It is no path.
    """
    folder = user_path(path, "the checkpoint")
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{folder} is a file; give the folder of a checkpoint, which holds model_index.json")
    text = os.fspath(path)
    if not _ID.fullmatch(text) or "--" in text or ".." in text:
        raise FileNotFoundError(
            f"{text} is neither a folder nor a hub id such as 'BestWishYsh/Helios-Distilled' (looked in "
            f"{pathlib.Path.cwd()})"
        )
    return None
