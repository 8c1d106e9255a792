"""A picture of drift: curves of every statistic over the chunks, and frames of the first and the last chunk."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from helios_jax.evaluation.statistics import STATISTICS, PerChunk, mean_statistics
from helios_jax.typing import UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

TILES = 3
"""Frames shown of a chunk."""

MOST_VIDEOS = 4
"""Videos of which frames are shown."""

_TILE_WIDTH = 160
_GAP = 6


def drift_sheet(
    videos: Sequence[UInt8[np.ndarray, "F H W 3"]],
    statistics: Sequence[PerChunk],
    reference: Mapping[str, float],
    chunk_frames: int,
    draw_more: "Callable[[SubFigure], None] | None" = None,
) -> "Figure":
    """Draws the picture.

    Args:
        videos: The videos, of one size and length.
        statistics: Their ``chunk_statistics``.
        reference: Values of data by statistic, drawn as dashed lines; some or all may be missing.
        chunk_frames: Pixel frames of a chunk.
        draw_more: Draws a row of panels between the curves and the frames.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    strip = contact_strip(videos[:MOST_VIDEOS], chunk_frames)
    width = 12.0
    strip_height = (width - 0.6) * strip.shape[0] / strip.shape[1]
    heights = [4.6, *([2.4] if draw_more else []), strip_height]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    # ``figure.subfigures`` would return an array, whose type says nothing of its length.
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    curves, *more, frames = (figure.add_subfigure(grid[row]) for row in range(len(heights)))
    if draw_more is not None:
        draw_more(more[0])
    means = mean_statistics(statistics)
    for panel, name in zip(curves.subplots(2, len(STATISTICS) // 2).flat, STATISTICS, strict=True):
        chunks = np.arange(len(means[name]))
        for video in statistics:
            panel.plot(chunks, video[name], color="silver", linewidth=0.8)
        panel.plot(chunks, means[name], color="navy", marker=".")
        if name in reference:
            panel.axhline(reference[name], color="darkorange", linestyle="--", linewidth=1)
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("chunk", fontsize=8)
    axes = frames.subplots()
    axes.imshow(strip)
    axes.set_axis_off()
    axes.set_title("first chunk (left) and last chunk (right) of each video", fontsize=9)
    return figure


def contact_strip(videos: Sequence[UInt8[np.ndarray, "F H W 3"]], chunk_frames: int) -> UInt8[np.ndarray, "H2 W2 3"]:
    """A row per video: frames of its first chunk, a gap, and frames of its last chunk."""
    rows = []
    for video in videos:
        stride = max(1, video.shape[2] // _TILE_WIDTH)
        last = (len(video) - 1) // chunk_frames * chunk_frames
        ends = []
        for start in (0, last):
            stop = min(start + chunk_frames, len(video)) - 1
            picks = np.linspace(start, stop, TILES).round().astype(int)
            ends.append(np.concatenate(list(video[picks, ::stride, ::stride]), axis=1))
        gap = np.full((ends[0].shape[0], _GAP, 3), 255, np.uint8)
        row = np.concatenate([ends[0], gap, ends[1]], axis=1)
        rows += [row, np.full((_GAP, row.shape[1], 3), 255, np.uint8)]
    return np.concatenate(rows[:-1])
