"""Parsing of command lines: a parser with short errors, and flag types that check ranges.

parser = Parser(prog="helios-sample", description=__doc__)
parser.add_argument("--height", type=whole("--height", at_least=1))
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl.flags import argparse_flags

from helios_jax.user_input import did_you_mean, finite_number, number_in, user_path, whole_number, whole_number_in
from helios_jax.version import __version__


class Parser(argparse_flags.ArgumentParser):
    """An argument parser with one-line errors that suggests the nearest name for an unknown flag."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation would hide a typo: --vid is not --video.
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)
        self._given: list[str] = []
        version = f"helios_jax {__version__}"
        self.add_argument("--version", action="version", version=version, help="print the version and exit")

    def error(self, message: str) -> NoReturn:
        """Prints one line instead of all flags and exits with code 2."""
        _, _, rest = message.partition(": ")
        message = rest if message.startswith("argument ") and rest.startswith("--") else message
        if message.startswith("the following arguments are required"):
            # Perhaps because one of them is misspelt, which is then the better message.
            given = [word.partition("=")[0] for word in self._given if word.startswith("--")]
            if unknown := [flag for flag in given if flag not in self._flags()]:
                message = f"unknown flag {shortened(unknown[0])}{did_you_mean(unknown[0], self._flags())}"
            elif (
                self._given and not self._given[0].startswith("-") and all(one.option_strings for one in self._actions)
            ):
                message += f"; {shortened(self._given[0])!r} is not a flag"
        print(f"{self.prog}: {message} (--help lists the flags)", file=sys.stderr)
        sys.exit(2)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Reads the arguments, also those of a subcommand; see ``argparse``."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Reads the arguments; see ``argparse``."""
        known, unknown = self.parse_known_args(args, namespace)
        if not unknown:
            return known
        word = unknown[0]
        if word.startswith("-"):
            flag = word.partition("=")[0]
            self.error(f"unknown flag {shortened(flag)}{did_you_mean(flag, self._flags())}")
        if self._subparsers is not None:
            self.error(f"{shortened(word)!r} is one argument too many; put quotes around a path with spaces")
        self.error(f"{shortened(word)!r} is not a flag; put quotes around text with spaces, --prompt='a red fox'")

    def _flags(self) -> list[str]:
        """The flags of the command and of all its subcommands."""
        found = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [flag for command in action.choices.values() for flag in command._option_string_actions]
        return found


def shortened(text: str, length: int = 60) -> str:
    """The text for a message, cut to ``length`` characters."""
    return text if len(text) <= length else f"{text[:length]}..."


def whole(flag: str, *, at_least: int | None = None, at_most: int | None = None) -> Callable[[str], int]:
    """The type of a flag for whole numbers in a range."""

    def read(text: str) -> int:
        try:
            value: Any = whole_number_in(text)
        except ValueError:  # also raised for more digits than Python converts
            value = shortened(text)
        return _as_flag_error(lambda: whole_number(value, flag, at_least=at_least, at_most=at_most))

    return read


def finite(flag: str, *, at_least: float | None = None, at_most: float | None = None) -> Callable[[str], float]:
    """The type of a flag for finite numbers in a range."""

    def read(text: str) -> float:
        try:
            value: Any = number_in(text)
        except ValueError:
            value = shortened(text)
        return _as_flag_error(lambda: finite_number(value, flag, at_least=at_least, at_most=at_most))

    return read


def wholes(flag: str, *, at_least: int | None = None, at_most: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """The type of a flag for whole numbers with commas between them."""

    def read(text: str) -> tuple[int, ...]:
        inner = text.strip()
        if inner.startswith("(") and inner.endswith(")"):  # as a tuple of Python: (2, 2, 2) or (2,)
            inner = inner[1:-1].removesuffix(",")
        if "," not in inner and len(inner.split()) > 1:
            raise argparse.ArgumentTypeError(f"{flag}={shortened(text)!r}: put commas between the numbers")
        parts = inner.split(",")
        one = whole(flag if len(parts) == 1 else f"{flag}={shortened(text)}: part", at_least=at_least, at_most=at_most)
        return tuple(one(part) for part in parts)

    return read


def path(flag: str) -> Callable[[str], Path]:
    """The type of a flag for a path; ``~`` is expanded."""
    return lambda text: _as_flag_error(lambda: user_path(text, flag))


def _as_flag_error[T](read: Callable[[], T]) -> T:
    """Keeps the message of a ``ValueError``, which argparse would replace by its own."""
    try:
        return read()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
