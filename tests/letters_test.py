"""Axes in array annotations are letters of the table in ``helios_jax.typing``, or words."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

from helios_jax.typing import LETTERS

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("helios_jax", "data", "experiments", "pallas_kernels", "benchmarks")
KINDS = {"Bool", "Float", "Int", "Key", "Shaped", "UInt8", "UInt32"}
AXIS = re.compile(
    r"[*#]*("
    r"\d+|\.\.\.|_|\{\w+\}"  # a number, any axes, any size, a value of the call
    rf"|(\d\*)?[{''.join(LETTERS)}]\d?([+-]\d)?"  # a letter, its multiples and neighbours; with a digit: another size
    r"|[a-z][a-z_]{2,}\d?([+-]\d)?)"  # a word
)


def annotations(source: str) -> Iterator[str]:
    """The axes of every jaxtyping annotation."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in KINDS:
            last = node.slice.elts[-1] if isinstance(node.slice, ast.Tuple) else None
            if isinstance(last, ast.Constant) and isinstance(last.value, str):
                yield last.value


def unknown_axes(axes: str) -> list[str]:
    """Axes that are neither letters of the table nor words; N must stand with K, since it counts heads."""
    names = axes.split()
    wrong = [name for name in names if not AXIS.fullmatch(name)]
    letters = {re.sub(r"\W|\d", "", name) for name in names}
    return wrong + (["N"] if "N" in letters and not letters & {"K", "S"} else [])


def test_every_axis_is_a_letter_of_the_table_or_a_word():
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    found = {file: list(annotations(file.read_text())) for file in files}
    assert sum(map(len, found.values())) > 500
    wrong = {
        f"{file.relative_to(ROOT)}: {axes!r}": unknown_axes(axes)
        for file, lines in found.items()
        for axes in lines
        if unknown_axes(axes)
    }
    assert not wrong, wrong


@pytest.mark.parametrize(
    "axes", ["B S N K", "*B 2*H W2 C", " steps+1", "#B ... 3", "F {height} {width} 3", "B T _ _ C"]
)
def test_known_axes(axes):
    assert unknown_axes(axes) == []


@pytest.mark.parametrize("axes", ["M 2", "B Q", "N H W", "t h w", "B S22"])
def test_unknown_axes(axes):
    assert unknown_axes(axes) != []
