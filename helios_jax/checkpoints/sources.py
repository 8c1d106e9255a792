"""Where a checkpoint is: a folder, or a repository on the hub. Imports nothing heavy."""

import os
import pathlib
import re

from helios_jax.checkpoints.shipped import SHIPPED, named_folder
from helios_jax.config.defaults import SamplingDefaults

_NAME = r"\w(?:[\w.-]*\w)?"
_ID = re.compile(f"{_NAME}/{_NAME}")


def folder_of(path: str | os.PathLike[str]) -> pathlib.Path | None:
    """The folder that ``path`` names, with ``~`` expanded; ``None`` if it can only be a hub id ("owner/name").

    The name of a shipped checkpoint ("helios-tiny") stands for its folder.

    Raises:
        FileNotFoundError: It is neither, or a shipped checkpoint that this installation does not have.
        ValueError: It is no path.
    """
    folder = named_folder(path, "the checkpoint")
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{folder} is a file; give the folder of a checkpoint, which holds model_index.json")
    text = os.fspath(path)
    if not _ID.fullmatch(text) or "--" in text or ".." in text:
        raise FileNotFoundError(
            f"{text} is neither a folder nor a hub id such as 'BestWishYsh/Helios-Distilled' nor "
            f"{' or '.join(SHIPPED)} (looked in {pathlib.Path.cwd()})"
        )
    return None


def defaults_of(path: str | os.PathLike[str]) -> SamplingDefaults:
    """The settings that a checkpoint on disk was trained for; those of the published models for a hub id.

    Raises:
        FileNotFoundError: See ``folder_of``.
        ValueError: Its ``sampling.json`` is damaged.
    """
    folder = folder_of(path)
    return SamplingDefaults() if folder is None else SamplingDefaults.read(folder)
