"""Checkpoints that come with the package, by name. Imports nothing heavy.

    HeliosPipeline.from_pretrained("helios-tiny")      # the shipped checkpoint, from any directory
    HeliosPipeline.from_pretrained("./helios-tiny")    # a folder, as is every pathlib.Path

They are package data, in ``helios_jax/weights/<name>``. This module alone knows their names and which one is the
default; ``experiments/ship_tiny.py`` writes them.
"""

import importlib.resources
import os
import pathlib

from helios_jax.user_input import user_path

HELIOS_TINY = "helios-tiny"
SHIPPED = (HELIOS_TINY,)

MAX_BYTES, MAX_FILE_BYTES = 25_000_000, 16_000_000
"""Largest size of all shipped files together, and of one."""


def package_folder() -> pathlib.Path:
    """The folder of the shipped checkpoints, which need not exist."""
    return pathlib.Path(str(importlib.resources.files("helios_jax"))) / "weights"


def shipped_folder(name: str) -> pathlib.Path:
    """The folder of a shipped checkpoint.

    Raises:
        FileNotFoundError: This installation does not have it.
    """
    folder = package_folder() / name
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{name} is not part of this installation (no {folder}): train it with python -m "
            "helios_jax.experiments.train_tiny --size=helios_tiny and add it with "
            f"helios_jax.experiments.ship_tiny; a folder of your own is ./{name}"
        )
    return folder


def named_folder(path: str | os.PathLike[str], what: str = "path") -> pathlib.Path:
    """The folder of a shipped checkpoint if ``path`` is its name, else the path with ``~`` expanded.

    Raises:
        FileNotFoundError: It is the name of a checkpoint that this installation does not have.
        TypeError: It is no path.
        ValueError: Likewise.
    """
    return shipped_folder(path) if isinstance(path, str) and path in SHIPPED else user_path(path, what)


def default_checkpoint() -> str | None:
    """The name of the checkpoint that commands use when none is given; ``None`` if it is not installed."""
    try:
        shipped_folder(HELIOS_TINY)
    except FileNotFoundError:
        return None
    return HELIOS_TINY


def check_sizes(folder: pathlib.Path) -> int:
    """Returns the bytes of all files below ``folder``.

    Raises:
        ValueError: A file, or all of them together, are larger than what is shipped.
    """
    sizes = {file: file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    for file, size in sizes.items():
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{file} has {size:,} bytes; at most {MAX_FILE_BYTES:,} are shipped in a file")
    total = sum(sizes.values())
    if total > MAX_BYTES:
        raise ValueError(f"the files in {folder} have {total:,} bytes; at most {MAX_BYTES:,} are shipped")
    return total
