"""How an image or a video is brought to another aspect ratio. Imports nothing heavy: command lines need the choices."""

import typing
from typing import Any, Literal

Fit = Literal["stretch", "crop", "pad"]
"""Stretched, cropped around its centre, or with black bars."""


def check_fit(fit: Any) -> Fit:
    """Returns ``fit``; raises ValueError unless it is a ``Fit``."""
    if fit not in typing.get_args(Fit):
        raise ValueError(f"fit={fit!r} must be one of {', '.join(map(repr, typing.get_args(Fit)))}")
    return fit
