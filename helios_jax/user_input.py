"""Checks of user input: paths, names and numbers, with the same messages everywhere.

Every function returns the value in the form that the library works with, or raises an error that names the argument,
what was given and what is needed.
"""

import difflib
import math
import operator
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

MAX_NAME_BYTES = 255
"""Longest name of a file on the common file systems of Linux."""


def user_path(path: str | os.PathLike[str], what: str = "path") -> pathlib.Path:
    """The path with ``~`` and ``~user`` expanded.

    Raises:
        TypeError: It is not a path.
        ValueError: It is empty, holds a NUL, or a part of it is longer than file systems allow.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise TypeError(f"{what}={path!r} is not a path: a str or pathlib.Path is needed") from None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{what}={text!r} is not a path")
    try:
        expanded = pathlib.Path(text).expanduser()
    except RuntimeError as error:  # ~user of a user that does not exist
        raise ValueError(f"{what}={text!r}: {error}") from error
    for part in expanded.parts:
        if len(os.fsencode(part)) > MAX_NAME_BYTES:
            raise ValueError(f"{what}: the name {part[:40]}... is longer than {MAX_NAME_BYTES} bytes; shorten it")
    return expanded


def existing_file(path: str | os.PathLike[str], kind: str) -> pathlib.Path:
    """Returns ``path`` if it is a file.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is a folder, or no path.
    """
    path = user_path(path, kind)
    if not path.exists():
        if re.match(r"[A-Za-z]{2,}:/", str(path)):  # pathlib has joined the two slashes of a URL
            raise FileNotFoundError(f"the {kind} {path} is not a file; download it and give the path of the file")
        where = "" if path.is_absolute() else f" (looked in {pathlib.Path.cwd()})"
        raise FileNotFoundError(f"the {kind} {path} does not exist{where}")
    if not path.is_file():
        raise ValueError(f"the {kind} {path} is not a file; give the path of one {kind}")
    return path


def plain_name(name: str, what: str = "name") -> str:
    """``name`` if it is a plain file name: no separators, not ``..``, no control characters.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(name, str) or name.strip() in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{what}={name!r} must be the plain name of a file, without '/' and not '.' or '..'")
    if not name.isprintable() or name != name.strip():
        raise ValueError(f"{what}={name!r} must be a plain name: control characters and outer spaces are not allowed")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"{what}={name[:40]!r}... is longer than {MAX_NAME_BYTES} bytes; shorten it")
    return name


def whole_number(value: Any, what: str, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """``value`` as an int, if it is an integer of Python or NumPy (not a bool) in the range.

    Raises:
        ValueError: It is not.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{what}={value!r} must be a whole number{_range(at_least, at_most)}") from None
    if (at_least is not None and number < at_least) or (at_most is not None and number > at_most):
        raise ValueError(f"{what}={number} must be a whole number{_range(at_least, at_most)}")
    return number


def finite_number(value: Any, what: str, *, at_least: float | None = None, at_most: float | None = None) -> float:
    """``value`` as a float, if it is a finite real number (not a bool, not a text) in the range.

    Raises:
        ValueError: It is not.
    """
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)
        if not math.isfinite(number):
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{what}={value!r} must be a finite number{_range(at_least, at_most)}") from None
    if (at_least is not None and number < at_least) or (at_most is not None and number > at_most):
        raise ValueError(f"{what}={value!r} must be a finite number{_range(at_least, at_most)}")
    return number


def number_in(text: str) -> float:
    """The number that a text shows, in the digits 0 to 9; also "nan" and "inf", so that a check can name them.

    Raises:
        ValueError: It is not a number. Python would also read "1_0" as 10, and digits of other scripts.
    """
    if not re.fullmatch(
        r"\s*[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf|infinity)\s*", text, re.IGNORECASE
    ):
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def whole_number_in(text: str) -> int:
    """Like ``number_in``, for whole numbers."""
    if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def yes_or_no(value: Any, what: str) -> bool:
    """``value`` as a bool, if it is a bool of Python or NumPy.

    Raises:
        ValueError: It is not, for example the text "false", which Python would count as true.
    """
    if not isinstance(value, bool) and str(getattr(value, "dtype", "")) != "bool":
        raise ValueError(f"{what}={value!r} must be True or False")
    return bool(value)


def _range(at_least: float | None, at_most: float | None) -> str:
    if at_least is not None and at_most is not None:
        return f" from {at_least} to {at_most}"
    if at_least is not None:
        return f" of at least {at_least}"
    return "" if at_most is None else f" of at most {at_most}"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean X?"`` with the nearest of ``choices``, or an empty text if none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""
