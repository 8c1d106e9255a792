"""Checks of configurations: the annotations of a dataclass define which values its fields accept.

An annotation is ``bool``, ``int``, ``float``, ``str``, a ``Literal``, a tuple of these, or one of them ``| None``.
Numbers must be finite; ``Annotated[int, Range(1, 8)]`` limits them.
"""

import dataclasses
import functools
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from helios_jax.user_input import finite_number, whole_number

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Range:
    """Smallest and largest value of a number, inclusive."""

    low: float
    high: float


Width = Annotated[int, Range(1, 10**6)]
"""Channels, heads or rows: the size of one axis of a parameter."""

Depth = Annotated[int, Range(1, 1024)]
"""Number of layers."""

Epsilon = Annotated[float, Range(1e-12, 1e-2)]
"""What a norm adds to the variance; the published models use 1e-6."""


class SettingError(ValueError):
    """A setting has a value that cannot be used.

    Attributes:
        key: Its name.
        value: What was given.
        expected: What is needed, in words.
    """

    def __init__(self, key: str, value: Any, expected: str) -> None:
        super().__init__(f"{key}={shown(value)}; expected {expected}")
        self.key, self.value, self.expected = key, value, expected


def check_fields(config: Any) -> None:
    """Checks every field of a frozen dataclass against its annotation, and converts it to the annotated type.

    Lists become tuples, whole numbers in fields of type float become floats, and NumPy's numbers become Python's.

    Raises:
        SettingError: A field has another type, is not finite or is out of range.
    """
    for name, annotation in _annotations(type(config)).items():
        object.__setattr__(config, name, _conform(name, getattr(config, name), annotation))


def read_fields[C](cls: type[C], json: Json, names: Mapping[str, str], **others: Any) -> C:
    """Builds ``cls`` from the values of ``json``; absent keys keep the defaults of the fields.

    Args:
        cls: A dataclass that calls ``check_fields``.
        json: The content of a published file.
        names: Published key -> field.
        **others: Further fields.

    Raises:
        SettingError: A value does not fit; the error names the published key.
    """
    annotations = _annotations(cls)
    found = {field: _conform(key, json[key], annotations[field]) for key, field in names.items() if key in json}
    try:
        return cls(**(others | found))
    except SettingError as error:
        published = {field: key for key, field in names.items()}
        raise SettingError(published.get(error.key, error.key), error.value, error.expected) from None


def publish(config: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Inverse of ``read_fields``: the published keys of ``config``; tuples become lists."""
    values = {key: getattr(config, field) for key, field in names.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def require(json: Json, key: str, *allowed: Any) -> None:
    """Raises SettingError when ``json[key]`` is present with a value that we do not implement."""
    if key in json and not _is_one_of(json[key], allowed):
        raise SettingError(key, json[key], _one_of(allowed))


def shown(value: Any) -> str:
    """``repr(value)``, shortened if it is long or deeply nested."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxtuple, _SHORT.maxlist, _SHORT.maxdict = 3, 17, 17, 4
_SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 80, 40, 80


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _conform(key: str, value: Any, annotation: Any) -> Any:
    try:
        return _converted(value, annotation)
    except ValueError:
        raise SettingError(key, value, _expected(annotation)) from None


def _converted(value: Any, annotation: Any) -> Any:
    """``value`` in the annotated type. Raises ValueError."""
    kind, limits = _split(annotation)
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        fits = _is_one_of(value, arguments)
    elif get_origin(kind) in (types.UnionType, typing.Union):
        return None if value is None else _converted(value, arguments[0])
    elif get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
            return tuple(_converted(part, each) for part, each in zip(value, inner, strict=True))
        fits = False
    elif kind is int:
        low, high = (None, None) if limits is None else (int(limits.low), int(limits.high))
        return whole_number(value, "value", at_least=low, at_most=high)
    elif kind is float:
        low, high = (None, None) if limits is None else (limits.low, limits.high)
        return finite_number(value, "value", at_least=low, at_most=high)
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise ValueError
    return value


def _split(annotation: Any) -> tuple[Any, Range | None]:
    """The type and the limits of an annotation."""
    if get_origin(annotation) is Annotated:
        kind, limits = get_args(annotation)
        return kind, limits
    return annotation, None


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    # Types are compared because 1 == True == 1.0 in Python.
    return any(type(value) is type(each) and value == each for each in allowed)


def _one_of(allowed: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, allowed))


def _expected(annotation: Any, count: int | None = 1) -> str:
    """What an annotation allows, in words, for ``count`` values; ``None``: for any number of values."""
    kind, limits = _split(annotation)
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return _one_of(arguments)
    if get_origin(kind) in (types.UnionType, typing.Union):
        return f"{_expected(arguments[0])}, or None"
    if get_origin(kind) is tuple:
        return f"a list of {_expected(arguments[0], None if arguments[-1] is Ellipsis else len(arguments))}"
    if kind is bool:
        return "True or False"
    number = {int: "whole number", float: "finite number", str: "text"}.get(kind, kind.__name__)
    words = f"a {number}" if count == 1 else f"{number}s" if count is None else f"{count} {number}s"
    return words if limits is None else f"{words} from {kind(limits.low)} to {kind(limits.high)}"
