"""Short representations: arrays as dtype and shape, never their values."""

import dataclasses
from typing import Any

MAX_TEXT = 120
"""Longest representation of a value that is not an array, in characters."""


def brief(value: Any) -> str:
    """One short line: an array as ``float32 [1, 9, 48, 80, 16]``, other values as their truncated ``repr``."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype} {list(shape)}"
    text = repr(value)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


def brief_fields(value: Any) -> str:
    """``__repr__`` of a dataclass that holds arrays, or objects that do."""
    fields = (f"{field.name}={brief(getattr(value, field.name))}" for field in dataclasses.fields(value) if field.repr)
    return f"{type(value).__name__}({', '.join(fields)})"
