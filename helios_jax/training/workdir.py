"""The folder of a run: whether it can be written, and whether it holds nothing but a run."""

import json
import os
import pathlib

from helios_jax.user_input import user_path

_OWN = {"config.json", "start.json", "checkpoints", "metrics.jsonl", "tensorboard", "validation", "product"}
_LOGS = (".log", ".out", ".err")
"""Logs of schedulers and shells are often written next to the run that they describe."""

_SHOWN = 3


def checked_workdir(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """The folder, with ``~`` expanded. Nothing is created.

    Raises:
        ValueError: It is not a path, or holds files that do not belong to a run, or a config.json of another program.
        NotADirectoryError: It is a file, or lies in one.
        PermissionError: It cannot be written.
    """
    path = user_path(workdir, "--workdir")
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"--workdir={workdir}: {existing} is a file, not a folder; give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"--workdir={workdir}: {existing} cannot be written; give another folder")
    settings = path / "config.json"
    if settings.exists():
        if not _is_of_a_run(settings):
            raise ValueError(f"{settings} does not belong to a run; give a new or empty folder")
    elif path.is_dir():
        foreign = [name for name in sorted(os.listdir(path)) if not _belongs(name)]
        if foreign:
            more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
            raise ValueError(
                f"--workdir={workdir} holds {', '.join(foreign[:_SHOWN])}{more}, but no run (no config.json); "
                "give a new or empty folder"
            )
    return path


def _is_of_a_run(settings: pathlib.Path) -> bool:
    try:
        content = json.loads(settings.read_text())
    except ValueError:  # Damaged; the trainer reports that with advice.
        return True
    return isinstance(content, dict) and content.get("class") == "Experiment"


def _belongs(name: str) -> bool:
    return name in _OWN or name.startswith((".", "config.json", "start.json")) or name.endswith(_LOGS)
