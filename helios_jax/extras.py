"""The optional dependencies of the distribution (``helios_jax[train]``, ...), and which of them are missing."""

import importlib.metadata
import re


def require_extra(extra: str, purpose: str) -> None:
    """Checks that the packages of ``helios_jax[extra]`` are installed.

    The packages are read from the distribution's own metadata, so pyproject.toml is the only list of them.

    Args:
        extra: Name of the extra, such as "train".
        purpose: What needs it, for the message.

    Raises:
        ValueError: Some are missing; the message names them and the command that installs them.
    """
    if missing := _missing(extra):
        raise ValueError(f"{purpose} needs {', '.join(missing)}: pip install 'helios_jax[{extra}]'")


def _missing(extra: str) -> list[str]:
    try:
        requirements = importlib.metadata.requires("helios_jax") or []
    except importlib.metadata.PackageNotFoundError:  # A source tree on PYTHONPATH has no metadata to check against.
        return []
    named = [line for line in requirements if re.search(rf"""extra == ["']{extra}["']""", line)]
    packages = [match[0] for line in named if (match := re.match(r"[\w.-]+", line))]
    return [package for package in packages if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
