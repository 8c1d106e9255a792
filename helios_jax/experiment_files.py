"""Finds and loads experiment files, by path or, for installed experiments, by name."""

import importlib.util
import inspect
import traceback
from pathlib import Path
from typing import Any

from helios_jax.user_input import did_you_mean, user_path


def experiment_file(name: str) -> Path:
    """Finds the experiment file that ``name`` stands for, from any directory.

    An existing file at that path takes precedence, so your own experiment may have the name of an installed one.

    Args:
        name: Path of a file, or the file name of an installed experiment, such as "stage1_init.py".

    Raises:
        FileNotFoundError: There is neither; the message lists the installed experiments.
    """
    path = user_path(name, "--config")
    if path.is_file():
        return path
    installed = installed_experiments()
    if name in installed:
        return installed[name]
    hint = did_you_mean(f"{Path(name).stem}.py", installed).removeprefix("; ")
    hint = f"{hint} " if hint else ""  # a question of its own
    raise FileNotFoundError(f"no experiment file {name}; {hint}installed are {', '.join(installed)}")


def installed_experiments() -> dict[str, Path]:
    """The experiments that come with helios_jax: file name -> path.

    Scripts that run several experiments lie in the same folder; only files that define get_config can be trained.
    """
    # The package is found by name, not imported, because experiments import the trainer, on the floors above this one.
    spec = importlib.util.find_spec("helios_jax.experiments")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.py")]
    return {file.name: file for file in sorted(files) if "\ndef get_config(" in file.read_text(encoding="utf-8")}


def load_experiment(file: Path, size: str | None = None) -> Any:
    """Returns the result of ``get_config`` of an experiment file.

    Args:
        file: The file, a Python module.
        size: The argument of ``get_config``; ``None``: no argument.

    Raises:
        ValueError: The file has no ``get_config``, refuses ``size``, or does not run; the message names the line.
    """
    spec = importlib.util.spec_from_file_location("experiment", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError(f"{file} has no function get_config(size)")
        if size is not None and not inspect.signature(module.get_config).parameters:
            raise ValueError(f"get_config of {file} takes no size, got {size!r}")
        return module.get_config() if size is None else module.get_config(size)
    except ValueError:
        raise
    except Exception as error:  # The file is the user's code and may raise anything.
        raise ValueError(f"{_place(file, error)}: {type(error).__name__}: {error}") from error


def _place(file: Path, error: Exception) -> str:
    """``FILE:LINE`` of the innermost frame of an error's traceback that is in the file."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file}:{lines[-1]}" if lines else str(file)
