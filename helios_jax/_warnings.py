"""Warnings that point at the user's line, not into this package."""

import os
import warnings

_PACKAGE = os.path.dirname(__file__)


def warn_user(message: str) -> None:
    """Warns, naming the innermost caller outside this package."""
    warnings.warn(message, skip_file_prefixes=(_PACKAGE,))
