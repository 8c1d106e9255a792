"""Settings from the command line: a mutable mirror of a tree of frozen dataclasses, and the conversion back.

``ml_collections.config_flags`` sets one field at a time and parses it by its declared type. Our settings are frozen,
check themselves when they are built, and declare unions, literals and protocols. Therefore an experiment builds frozen
settings, the flags change the mirror, and ``frozen`` builds the settings again, with all their checks.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

_SCALARS = (bool, int, float, str, tuple)
"""Types that config_flags has parsers for."""

_MAX_INT = 2**63 - 1


def mutable(settings: Any) -> Any:
    """The mirror of a frozen dataclass, in which fields that are dataclasses are mirrored too."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return _mirror_of(type(settings), values)


def default_mirror(settings: type) -> Any:
    """The mirror of a class of settings with its defaults; fields without a default are ``None`` until they are set."""
    values = {}
    for field in dataclasses.fields(settings):
        if field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        else:
            values[field.name] = None if field.default is dataclasses.MISSING else field.default
    return _mirror_of(settings, values)


def is_mirror(value: Any) -> bool:
    """Whether a value comes from ``mutable``."""
    return dataclasses.is_dataclass(value) and hasattr(type(value), "mirrors")


def frozen(mirror: Any, name: str = "") -> Any:
    """The settings that a mirror represents.

    Args:
        mirror: The mirror.
        name: Its dotted name, for errors; its class by default.

    Raises:
        ValueError: The type of a value is not what its field declares, or the settings refuse it.
    """
    if not dataclasses.is_dataclass(mirror):
        return mirror
    settings = type(mirror).mirrors
    values, defaults = {}, {field.name: field.default for field in dataclasses.fields(settings)}
    for field, declared in declared_types(settings).items():
        path = f"{name or settings.__name__}.{field}"
        value = frozen(getattr(mirror, field), name and path)
        fitting, value = _fitted(value, declared)
        if not fitting:
            if value is None and defaults[field] is dataclasses.MISSING:
                raise ValueError(f"{path} has no default and must be set ({readable(declared)})")
            raise ValueError(f"{path} must be {readable(declared)}{_limits(value)}, got {value!r}")
        values[field] = value
    try:
        return settings(**values)
    except ValueError as error:
        raise ValueError(_placed(name, str(error), values)) from error


def as_json(settings: Any) -> Any:
    """Settings in JSON types. A dataclass stores its name as "class": protocols have several implementations."""
    if dataclasses.is_dataclass(settings):
        values = {field.name: as_json(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
        return {"class": type(settings).__name__, **values}
    if isinstance(settings, list | tuple):
        return [as_json(value) for value in settings]
    return settings


@functools.cache
def declared_types(settings: type) -> dict[str, Any]:
    """The declared type of every field of a class of settings."""
    hints = typing.get_type_hints(settings)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings)}


def alternatives(declared: Any) -> tuple[Any, ...]:
    """The members of a union; for any other type, the type itself."""
    union = typing.get_origin(declared) in (typing.Union, types.UnionType)
    return typing.get_args(declared) if union else (declared,)


def readable(declared: Any) -> str:
    """A declared type in words, such as "'constant' or 'cosine'"."""
    names = []
    for kind in alternatives(declared):
        if typing.get_origin(kind) is typing.Literal:
            names += map(repr, typing.get_args(kind))
        elif kind is types.NoneType:
            names.append("none")
        elif typing.get_origin(kind) is tuple:
            names.append(str(kind))
        else:
            names.append(getattr(kind, "__name__", str(kind)))
    return " or ".join(names)


def _mirror_of(settings: type, values: dict[str, Any]) -> Any:
    values = {name: mutable(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}
    declared = declared_types(settings)
    return _mirror_class(settings, tuple((name, _flag_type(declared[name], value)) for name, value in values.items()))(
        **values
    )


@functools.cache
def _mirror_class(settings: type, fields: tuple[tuple[str, Any], ...]) -> type:
    mirror = dataclasses.make_dataclass(settings.__name__, fields, kw_only=True)
    mirror.mirrors = settings
    return mirror


def _flag_type(declared: Any, value: Any) -> Any:
    """The type that config_flags parses a field as: a mirror (or none, if optional), a scalar, or any literal."""
    optional = types.NoneType in alternatives(declared)
    if dataclasses.is_dataclass(value):
        return type(value) | None if optional else type(value)
    simple = typing.get_origin(declared) or declared
    if simple is typing.Literal:
        simple = type(typing.get_args(declared)[0])
    return simple if simple in _SCALARS else object


def _fitted(value: Any, declared: Any) -> tuple[bool, Any]:
    """Whether a value has one of the declared types of a field, and the value converted to that type.

    Whole numbers count as floats and lists as tuples; numbers must be finite. All other checks are made by
    the settings themselves.
    """
    for kind in alternatives(declared):
        if _is_a(value, kind):
            return True, value
    kinds = [typing.get_origin(kind) or kind for kind in alternatives(declared)]
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    if tuple in kinds and isinstance(value, list | tuple):
        plain = tuple(tuple(part) if isinstance(part, list) else part for part in value)
        return any(_is_a(plain, kind) for kind in alternatives(declared)), plain
    return False, value


def _placed(name: str, message: str, fields: Iterable[str]) -> str:
    """Adds the dotted name to an error; many errors begin with the name of the field, or of the group and field."""
    if not name:
        return message
    parent, _, group = name.rpartition(".")
    if message.startswith(f"{group}.") and parent:
        return f"{parent}.{message}"
    return f"{name}.{message}" if re.match(rf"({'|'.join(fields)})\b[=.]", message) else f"{name}: {message}"


def _limits(value: Any) -> str:
    """Further requirements on a number, if the value may violate them."""
    if isinstance(value, float) and not math.isfinite(value):
        return " and finite"
    return " of at most 64 bits" if isinstance(value, int) and abs(value) > _MAX_INT else ""


def _is_a(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if not isinstance(origin, type) or origin is Any or getattr(origin, "_is_protocol", False):
        return True
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        return False
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) <= _MAX_INT
    return not isinstance(value, tuple) or _are(value, typing.get_args(kind))


def _are(values: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    """Whether the elements of a tuple have the declared types: ``(int, ...)``, or one type for each element."""
    if not kinds:
        return True
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    elif kinds == ((),):
        kinds = ()
    if len(values) != len(kinds):
        return False
    return all(_fitted(value, kind)[0] for value, kind in zip(values, kinds, strict=True))
