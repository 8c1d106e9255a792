"""How many videos of the moving shapes world show what their caption says: rows of counts, and rates of many rows.

A video counts as recovered when colour, kind and direction of every captioned shape can be read from its pixels and
there is no other shape.
"""

import collections
from collections.abc import Iterable
from typing import Any

import numpy as np

from helios_jax.data.moving_shapes.captions import parse_caption
from helios_jax.data.moving_shapes.scoring import score
from helios_jax.data.moving_shapes.styles import Style
from helios_jax.typing import UInt8

OF_SHAPES = ("colour", "kind", "direction", "size", "speed", "bounces")
OF_VIDEOS = ("count", "background", "lighting")

Row = dict[str, Any]


def judge(pair: tuple[UInt8[np.ndarray, "F H W 3"], str], style: Style = "plain") -> Row:
    """Scores a video against its caption: how many shapes have each attribute right, and 0 or 1 for the whole video."""
    video, caption = pair
    found = score(video, caption, style)
    return {
        "shapes": len(parse_caption(caption).shapes),
        "recovered": int(found.recovered),
        **{name: sum(getattr(shape, name) for shape in found.shapes) for name in OF_SHAPES},
        **{name: int(getattr(found, name)) for name in OF_VIDEOS},
    }


def rates(rows: Iterable[Row]) -> Row:
    """Rates and counts for all videos, and recovered videos by number of shapes.

    ``recovered_rate`` is the part of the videos that are recovered, 0 to 1; others are texts with their counts.
    """
    rows = list(rows)
    by_shapes: dict[int, list[int]] = collections.defaultdict(list)
    for row in rows:
        by_shapes[row["shapes"]].append(row["recovered"])
    shapes, recovered = sum(row["shapes"] for row in rows), sum(row["recovered"] for row in rows)
    result: Row = {"recovered": _rate(recovered, len(rows)), "recovered_rate": recovered / len(rows)}
    for count, of_count in sorted(by_shapes.items()):
        result[f"recovered with {count}"] = _rate(sum(of_count), len(of_count))
    result |= {name: _rate(sum(row[name] for row in rows), shapes) for name in OF_SHAPES}
    result |= {name: _rate(sum(row[name] for row in rows), len(rows)) for name in OF_VIDEOS}
    return result


def _rate(right: int, total: int) -> str:
    return f"{100 * right / total:.1f} % ({right} of {total})"
