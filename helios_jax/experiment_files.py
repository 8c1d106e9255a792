"""Experiment files: found by their path or, for installed experiments, by their name."""

import difflib
import importlib.util
from pathlib import Path


def experiment_file(name: str) -> Path:
    """Finds the experiment file that ``name`` stands for, from any directory.

    An existing file at that path takes precedence, so your own experiment may have the name of an installed one.

    Args:
        name: Path of a file, or the file name of an installed experiment, such as "stage1_init.py".

    Raises:
        FileNotFoundError: There is neither; the message lists the installed experiments.
    """
    if Path(name).is_file():
        return Path(name)
    installed = installed_experiments()
    if name in installed:
        return installed[name]
    near = difflib.get_close_matches(f"{Path(name).stem}.py", installed, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    raise FileNotFoundError(f"no experiment file {name}; {hint}Installed are {', '.join(installed)}")


def installed_experiments() -> dict[str, Path]:
    """The experiments that come with helios_jax: file name -> path.

    Scripts that run several experiments lie in the same folder; only files that define get_config can be trained.
    """
    # The package is found by name, not imported, because experiments import the trainer, on the floors above this one.
    spec = importlib.util.find_spec("helios_jax.experiments")
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.py")]
    return {file.name: file for file in sorted(files) if "\ndef get_config(" in file.read_text(encoding="utf-8")}
