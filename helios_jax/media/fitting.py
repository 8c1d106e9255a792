"""How an image or a video gets another aspect. No imports, so that command lines can show the choices at once."""

import typing
from typing import Any, Literal

Fit = Literal["stretch", "crop", "pad"]
"""Stretched, cropped around its centre, or with black bars."""


def check_fit(fit: Any) -> Fit:
    """``fit`` if it is a ``Fit``; ValueError otherwise."""
    if fit not in typing.get_args(Fit):
        raise ValueError(f"fit={fit!r} must be one of {', '.join(map(repr, typing.get_args(Fit)))}")
    return fit
