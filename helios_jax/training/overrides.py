"""Settings from the command line: a mutable mirror of a tree of frozen dataclasses, and the conversion back.

``ml_collections.config_flags`` sets one field at a time and parses it by its declared type. Our settings are frozen,
check themselves when they are built, and declare unions, literals and protocols. Therefore an experiment builds frozen
settings, the flags change the mirror, and ``frozen`` builds the settings again, with all their checks.
"""

import dataclasses
import functools
import types
import typing
from typing import Any

_SCALARS = (bool, int, float, str, tuple)
"""Types that config_flags has parsers for."""


def mutable(settings: Any) -> Any:
    """The mirror of a frozen dataclass, in which fields that are dataclasses are mirrored too."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    values = {name: mutable(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}
    declared = _declared(type(settings))
    flagged = tuple((name, _flag_type(declared[name], value)) for name, value in values.items())
    return _mirror(type(settings), flagged)(**values)


def frozen(mirror: Any) -> Any:
    """The settings that a mirror represents.

    Raises:
        ValueError: The type of a value is not what its field declares, or the settings refuse it.
    """
    if not dataclasses.is_dataclass(mirror):
        return mirror
    settings = type(mirror).mirrors
    values = {}
    for name, declared in _declared(settings).items():
        value = frozen(getattr(mirror, name))
        if isinstance(value, int) and not isinstance(value, bool) and float in _alternatives(declared):
            value = float(value)
        if not _fits(value, declared):
            raise ValueError(f"{settings.__name__}.{name} must be {_readable(declared)}, got {value!r}")
        values[name] = value
    return settings(**values)


def as_json(settings: Any) -> Any:
    """Settings in JSON types. A dataclass stores its name as "class": protocols have several implementations."""
    if dataclasses.is_dataclass(settings):
        values = {field.name: as_json(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
        return {"class": type(settings).__name__, **values}
    if isinstance(settings, list | tuple):
        return [as_json(value) for value in settings]
    return settings


@functools.cache
def _mirror(settings: type, fields: tuple[tuple[str, Any], ...]) -> type:
    mirror = dataclasses.make_dataclass(settings.__name__, fields, kw_only=True)
    mirror.mirrors = settings
    return mirror


@functools.cache
def _declared(settings: type) -> dict[str, Any]:
    hints = typing.get_type_hints(settings)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


def _alternatives(declared: Any) -> tuple[Any, ...]:
    union = typing.get_origin(declared) in (typing.Union, types.UnionType)
    return typing.get_args(declared) if union else (declared,)


def _flag_type(declared: Any, value: Any) -> Any:
    """The type that config_flags parses a field as: a mirror (or none, if optional), a scalar, or any literal."""
    optional = types.NoneType in _alternatives(declared)
    if dataclasses.is_dataclass(value):
        return type(value) | None if optional else type(value)
    simple = typing.get_origin(declared) or declared
    if simple is typing.Literal:
        simple = type(typing.get_args(declared)[0])
    return simple if simple in _SCALARS else object


def _fits(value: Any, declared: Any) -> bool:
    """Whether the type of a value is among those that a field declares. Settings check everything else themselves."""
    return any(_is_a(value, kind) for kind in _alternatives(declared))


def _is_a(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if not isinstance(origin, type) or origin is Any or getattr(origin, "_is_protocol", False):
        return True
    return isinstance(value, origin) and (origin is bool or not isinstance(value, bool))


def _readable(declared: Any) -> str:
    names = []
    for kind in _alternatives(declared):
        literal = typing.get_origin(kind) is typing.Literal
        names += map(repr, typing.get_args(kind)) if literal else [getattr(kind, "__name__", str(kind))]
    return " or ".join(names)
