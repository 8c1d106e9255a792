"""Curves of many videos as SVG, for the report."""

import html
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from helios_jax.evaluation.records import Record
from helios_jax.typing import Float

COLOURS = ("#1f4e9c", "#d1711a", "#2d8659")
"""Of the parts of an evaluation, in order."""

_WIDTH, _HEIGHT = 380, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 6, 30
_SINGLE = 12
"""Videos of the first part that are drawn one by one."""

_MOST_POINTS = 300

Line = tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]
"""Positions and values, as many of each."""


def plots(found: Mapping[str, Sequence[Record]]) -> list[str]:
    """One figure for each curve that the records have.

    Args:
        found: The records, by part.
    """
    names = dict.fromkeys(name for records in found.values() for record in records for name in record["curves"])
    return [figure for name in names if (figure := _figure(name, found))]


def _figure(name: str, found: Mapping[str, Sequence[Record]]) -> str:
    """The figure of one curve; empty if it has no value anywhere."""
    axis, chunk = "", 0
    singles: list[Line] = []
    means: list[tuple[str, Line]] = []
    for part, (records, colour) in enumerate(zip(found.values(), itertools.cycle(COLOURS), strict=False)):
        having = [record for record in records if name in record["curves"]]
        if not having:
            continue
        curves = [record["curves"][name] for record in having]
        axis, chunk = curves[0]["axis"], having[0]["chunk_frames"]
        if part == 0 and len(curves) > 1:
            singles = [line for curve in curves[:_SINGLE] for line in _pieces(_line(curve))]
        means += [(colour, line) for line in _pieces(mean_line(curves))]
    lines = [*singles, *(line for _, line in means)]
    if not lines:
        return ""
    scale = _Scale(lines, logarithmic=axis == "frames apart")
    borders = range(chunk, int(scale.right) + 1, chunk) if axis == "frame" else range(0)
    drawn = [scale.vertical(border) for border in borders] if len(borders) <= 60 else []
    drawn += [scale.polyline(line, "#bbb", 0.7) for line in singles]
    drawn += [scale.polyline(line, colour, 1.8) for colour, line in means]
    svg = f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{scale.axes(axis)}{"".join(drawn)}</svg>'
    return f"<figure><figcaption>{html.escape(name)}</figcaption>{svg}</figure>"


def mean_line(curves: Sequence[dict]) -> Line:
    """The mean at every position that all curves have, over those with a value there; NaN where none has one.

    Beyond the end of the shortest video the mean would jump whenever another one ends.
    """
    common = set(curves[0]["at"]).intersection(*(curve["at"] for curve in curves[1:]))
    at = sorted(common)
    values = [dict(zip(curve["at"], curve["values"], strict=True)) for curve in curves]
    known = [[of[x] for of in values if of[x] is not None] for x in at]
    means = [sum(some) / len(some) if some else math.nan for some in known]
    return np.array(at, np.float64), np.array(means, np.float64)


def _line(curve: dict) -> Line:
    values = [math.nan if value is None else value for value in curve["values"]]
    return np.array(curve["at"], np.float64), np.array(values, np.float64)


def _pieces(line: Line) -> list[Line]:
    """The line without NaN, thinned by means of neighbours; an empty list if nothing is left."""
    known = np.isfinite(line[1])
    x, y = line[0][known], line[1][known]
    if not len(x):
        return []
    stride = -(-len(x) // _MOST_POINTS)
    starts = np.arange(0, len(x), stride)
    counts = np.diff(np.append(starts, len(x)))
    return [(np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts)]


class _Scale:
    """Maps values to pixels."""

    def __init__(self, lines: Sequence[Line], *, logarithmic: bool) -> None:
        x, y = (np.concatenate([line[axis] for line in lines]) for axis in (0, 1))
        self._log = logarithmic and x.min() > 0
        self._x = x.min(), max(x.max(), x.min() + 1)
        margin = 0.05 * (y.max() - y.min()) or 0.05 * abs(y.max()) or 0.05
        self._y = y.min() - margin, y.max() + margin

    @property
    def right(self) -> float:
        """The last position."""
        return float(self._x[1])

    def polyline(self, line: Line, colour: str, width: float) -> str:
        points = " ".join(f"{self._across(x):.1f},{self._down(y):.1f}" for x, y in zip(*line, strict=True))
        if len(line[0]) == 1:
            x, y = points.split(",")
            return f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>'
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>'

    def vertical(self, x: float) -> str:
        at = f"{self._across(x):.1f}"
        return f'<line x1="{at}" x2="{at}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="#eee"/>'

    def axes(self, name: str) -> str:
        bottom = _HEIGHT - _BOTTOM
        parts = [
            f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{bottom - _TOP}" fill="none" '
            'stroke="#ccc"/>'
        ]
        for value in np.linspace(*self._y, 5)[1:-1]:
            at = self._down(value)
            parts.append(_text(_LEFT - 4, at + 3.5, f"{value:.3g}", "end"))
            parts.append(f'<line x1="{_LEFT - 3}" x2="{_LEFT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#999"/>')
        low, high = self._x
        parts += [
            _text(_LEFT, bottom + 13, f"{low:g}", "start"),
            _text(_WIDTH - _RIGHT, bottom + 13, f"{high:g}", "end"),
        ]
        parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 24, name, "middle"))
        return "".join(parts)

    def _across(self, x: float) -> float:
        low, high = self._x
        share = math.log(x / low) / math.log(high / low) if self._log else (x - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def _down(self, y: float) -> float:
        low, high = self._y
        return _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="10" fill="#555" text-anchor="{anchor}">{html.escape(text)}</text>'
