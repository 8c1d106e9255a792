"""Flags for the settings of an experiment: ``--config.optimizer.learning_rate=1e-4``.

``ml_collections.config_flags`` parses the values. Cases for which its errors would be unclear are handled here first:
names that do not exist, values for groups, and groups that are ``None`` (``--config.lora.rank=64`` adds a LoRA).
"""

import ast
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from helios_jax.training.overrides import alternatives, declared_types, default_mirror, frozen, is_mirror, readable
from helios_jax.user_input import did_you_mean

NAME = "config"
_OVERRIDE = re.compile(rf"--?(?:no)?{NAME}\.(?P<name>[^=]*)(?:=(?P<value>.*))?", re.DOTALL)
_LIST = "(--help_config lists all settings)"


def parse_settings(mirror: Any, argv: Sequence[str], values: flags.FlagValues) -> tuple[Any, list[str]]:
    """Parses a command line into the other flags' values and the settings.

    Args:
        mirror: The settings to change, from ``mutable``; groups that flags switch on are added to it.
        argv: The command line without ``--config`` itself; ``argv[0]`` is the program.
        values: The other flags.

    Returns:
        The frozen settings, and the words that are not flags.

    Raises:
        ValueError: A setting does not exist, or its value has the wrong type or is refused.
    """
    from ml_collections import config_flags

    argv = list(argv)
    for place, word in enumerate(argv):
        if match := _OVERRIDE.fullmatch(word):
            argv[place] = _checked(mirror, word, match["name"].split("."), match["value"])
    argv = [word for word in argv if word]
    try:
        config_flags.DEFINE_config_dataclass(NAME, mirror, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise ValueError(f"{error}{_elsewhere(mirror, error.flagname)}") from error
    except flags.Error as error:
        raise ValueError(_explained(mirror, str(error))) from error
    return frozen(values[NAME].value, NAME), rest


def leaves(mirror: Any, name: str = NAME) -> Iterator[str]:
    """Dotted names of all settings."""
    for field in dataclasses.fields(mirror):
        value, path = getattr(mirror, field.name), f"{name}.{field.name}"
        if is_mirror(value):
            yield from leaves(value, path)
        else:
            yield path


def _checked(mirror: Any, word: str, parts: Sequence[str], value: str | None) -> str:
    """Checks one flag and adds groups that are ``None``. Returns the flag, or "" if nothing is left to parse.

    Raises:
        ValueError: There is no such setting, or it cannot take a value.
    """
    holder, path = mirror, NAME
    for part in parts[:-1]:
        _check_name(mirror, holder, path, part)
        path = f"{path}.{part}"
        if getattr(holder, part) is None:
            setattr(holder, part, _added(holder, part, path))
        if not is_mirror(getattr(holder, part)):
            raise ValueError(f"{path} has no parts: it is {getattr(holder, part)!r}; set --{path}=VALUE")
        holder = getattr(holder, part)
    name = parts[-1]
    _check_name(mirror, holder, path, name)
    path, found = f"{path}.{name}", getattr(holder, name)
    if value == "build" and found is None:
        setattr(holder, name, _added(holder, name, path))
        return ""
    optional = type(None) in alternatives(declared_types(type(holder).mirrors)[name])
    if is_mirror(found) and not (optional and (value or "").lower() in ("none", "build")):
        some = ", ".join(f"--{path}.{field.name}" for field in dataclasses.fields(found)[:4])
        none = f", or --{path}=none" if optional else ""
        raise ValueError(f"{word}: {path} is a group of settings ({type(found).__name__}); set {some}{none}")
    if value and value[0] in "([" and not is_mirror(found):
        _check_tuple(path, value)
    if optional and value is not None and value.lower() == "none":
        return f"--{path}=None" if not is_mirror(found) else word.lower()
    return word


def _check_tuple(path: str, value: str) -> None:
    """Raises ValueError for text without quotes, which would become one text that contains the brackets."""
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"{path}: {value} is not a tuple. Put texts in quotes, and the whole flag too: --{path}=\"('a', 'b')\""
        ) from error


def _check_name(mirror: Any, holder: Any, path: str, part: str) -> None:
    names = [field.name for field in dataclasses.fields(holder)]
    if part in names:
        return
    if "[" in part:
        raise ValueError(f"{path}.{part}: single elements cannot be set; give all of them, such as '(1,2,1)'")
    hint = did_you_mean(part, names) or _elsewhere(mirror, part) or f"; {path} has {', '.join(names)}."
    raise ValueError(f"{path}.{part} does not exist{hint} {_LIST}")


def _elsewhere(mirror: Any, name: str) -> str:
    """A hint at other places in the settings where the name exists."""
    found = [path for path in leaves(mirror) if path.rpartition(".")[2] == name]
    return f"; did you mean --{' or --'.join(found)}?" if found else ""


def _added(holder: Any, name: str, path: str) -> Any:
    """The default mirror of a group that is ``None``."""
    declared = declared_types(type(holder).mirrors)[name]
    kinds = [kind for kind in alternatives(declared) if dataclasses.is_dataclass(kind)]
    if len(kinds) != 1:
        raise ValueError(
            f"{path} is none in this experiment, and flags cannot choose its kind ({readable(declared)}); "
            "choose one in your own experiment file"
        )
    return default_mirror(kinds[0])


def _explained(mirror: Any, message: str) -> str:
    """Rewrites a parser's error like those of ``frozen``."""
    match = re.match(rf"flag --({NAME}\.[\w.]+)=(.*?): ", message, re.DOTALL)
    if match is None:
        return message.strip().splitlines()[-1]
    holder: Any = mirror
    *groups, name = match[1].split(".")[1:]
    for group in groups:
        holder = getattr(holder, group)
    declared = declared_types(type(holder).mirrors)[name]
    return f"{match[1]} must be {readable(declared)}, got {match[2]!r}"
