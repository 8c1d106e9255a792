"""The settings of an experiment as text: name, value, type and documentation of each."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from helios_jax.training.overrides import alternatives, declared_types, readable

_WIDTH = 110


def describe(settings: Any, name: str = "config") -> Iterator[str]:
    """Lines that explain every setting; groups that are ``None`` are listed with the settings they could have.

    Args:
        settings: Frozen settings.
        name: Their dotted name.
    """
    documents, types = attribute_documents(type(settings)), declared_types(type(settings))
    groups = []
    for field in types:
        value, path = getattr(settings, field), f"{name}.{field}"
        absent = next((kind for kind in alternatives(types[field]) if dataclasses.is_dataclass(kind)), None)
        if dataclasses.is_dataclass(value):
            lines = describe(value, path)
            groups.append((f"{path}: {type(value).__name__}", documents.get(field, ""), lines))
        elif value is None and absent is not None:
            title = f"{path} = None; a {absent.__name__} is added by setting any of these"
            groups.append((title, documents.get(field, ""), _absent(absent, path)))
        else:
            yield f"{path} = {value!r}  ({readable(types[field])})"
            yield from _indented(documents.get(field, ""))
    for title, document, lines in groups:
        yield f"\n{title}"
        yield from _indented(document)
        yield from lines


def values_of(settings: Any, name: str = "config") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting; the value of a group is the name of its class."""
    for field in dataclasses.fields(settings):
        value, path = getattr(settings, field.name), f"{name}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield path, type(value).__name__
            yield from values_of(value, path)
        else:
            yield path, value


def attribute_documents(settings: type) -> dict[str, str]:
    """The texts under ``Attributes:`` in the docstring of a class, by field."""
    _, _, section = inspect.cleandoc(settings.__doc__ or "").partition("Attributes:\n")
    section = textwrap.dedent(re.split(r"\n(?=\S)", section)[0])
    entries = re.findall(r"^(\w+): (.*(?:\n[ \t]+.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _absent(group: type, path: str) -> Iterator[str]:
    documents, types = attribute_documents(group), declared_types(group)
    for field in dataclasses.fields(group):
        if field.default_factory is not dataclasses.MISSING:
            default = f"default {field.default_factory()!r}"
        elif field.default is not dataclasses.MISSING:
            default = f"default {field.default!r}"
        else:
            default = "must be set"
        yield f"{path}.{field.name}  ({readable(types[field.name])}; {default})"
        yield from _indented(documents.get(field.name, ""))


def _indented(document: str) -> list[str]:
    return textwrap.wrap(document.replace("``", ""), _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4)
