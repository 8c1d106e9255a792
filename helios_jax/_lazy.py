"""Public names that are imported on first use (PEP 562), so that importing the package is instant."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the ``__getattr__`` and ``__dir__`` of ``package`` for ``exports``: name -> defining module.

    A name that equals the last part of its module is the module itself.
    """

    def load(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(exports[name])
        return module if exports[name].rpartition(".")[2] == name else getattr(module, name)

    return load, lambda: sorted(exports)
