"""Warnings that point at the user's line, not into this package or a library."""

import functools
import importlib.util
import os
import sys
import sysconfig
import warnings

_PACKAGES = ("helios_jax", "helios_jax.data", "helios_jax.experiments", "pallas_kernels")
_BETWEEN = ("beartype", "flax", "jax", "jaxtyping")
"""Libraries that call our functions: decorators, transformations and type checkers."""


def warn_user(message: str) -> None:
    """Warns, naming the innermost caller outside this package, the standard library and libraries in between."""
    between = [os.path.dirname(file) for name in _BETWEEN if (file := getattr(sys.modules.get(name), "__file__", None))]
    warnings.warn(message, skip_file_prefixes=(*_folders(), *(f"{folder}{os.sep}" for folder in between)))


@functools.cache
def _folders() -> tuple[str, ...]:
    folders = []
    for name in _PACKAGES:
        # In an editable install the packages are in different places.
        spec = importlib.util.find_spec(name)
        folders += spec.submodule_search_locations or () if spec else ()
    return *(f"{folder}{os.sep}" for folder in folders), *_standard_library()


def _standard_library() -> list[str]:
    """Prefixes of the standard library's files. site-packages is inside its folder but not part of it."""
    root = sysconfig.get_path("stdlib")
    names = [entry.name for entry in os.scandir(root) if entry.name not in ("site-packages", "dist-packages")]
    return [os.path.join(root, name) for name in names if name.endswith(".py") or "." not in name]
