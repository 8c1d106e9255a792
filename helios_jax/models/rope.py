"""Rotary position embedding over frame, row and column, with relative or absolute frame indices.

A token at frame index t, row y and column x of its own stream's token grid is rotated by

    angle_j = p * theta^(-2 j / n),   j = 0 .. n/2 - 1,   p in (t, y, x),                          (1)

where n is the number of channels given to that axis (44, 42 and 42 of a head's 128 in the published model). The
rotation itself is ``pallas_kernels.qk_norm_rope``.

The mid and long history tiers see the grid of the short tier through average pooling of cos and sin
over 2x2x2 and 4x4x4 cells, so their pairs both rotate and shrink; they are not renormalised
(Helios, arXiv 2603.04379, as in diffusers ``HeliosRotaryPosEmbed``). The frame indices are relative to
the window and equal for every chunk, which is why positions never grow with the video.

With absolute positions, which Helios does without, a frame's index is its number in the video. Frame t of the window,
with the first frame of the current chunk at t_0 and n frames in each of the k chunks before it, has the index

    t - t_0 + n k,        and the anchor has 0.                                                    (2)

A rotation of all tokens by the same angle does not change their attention. So all that (2) changes is that the anchor
moves away from the other frames as the video grows; without an anchor it changes nothing.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from helios_jax.config import HistoryConfig
from helios_jax.models.layers import pad_to_multiple
from helios_jax.typing import Array, Float, Int

RopeTable = Float[Array, "*samples S 2 K2"]
"""cos and sin of every token for the K/2 channel pairs, fp32: one table for all samples, or one for each."""

FrameIndices = Sequence[int] | Float[Array, " T"]


def frame_indices(layout: HistoryConfig, chunk: int | Int[Array, ""]) -> tuple[FrameIndices, ...]:
    """Frame indices of the (long, mid, short, current) streams of chunk number ``chunk``."""
    relative = layout.frame_indices
    if layout.positions == "relative":
        return relative
    shift = chunk * layout.chunk_frames - relative[-1][0]
    long, mid, short, current = (jnp.asarray(indices, jnp.float32) + shift for indices in relative)
    return long, mid, short.at[0].set(0) if layout.keep_first_frame else short, current


def rope_grid(
    frame_indices: FrameIndices, height: int, width: int, rope_dim: Sequence[int], theta: float
) -> Float[Array, "T H W 2 K2"]:
    """cos and sin of equation (1) on a (frames, rows, columns) grid, fp32."""
    frames = jnp.asarray(frame_indices, jnp.float32)[:, None, None, None]
    rows = jnp.arange(height, dtype=jnp.float32)[:, None, None]
    columns = jnp.arange(width, dtype=jnp.float32)[:, None]
    angles = [
        jnp.broadcast_to(position * _frequencies(channels, theta), (len(frame_indices), height, width, channels // 2))
        for position, channels in zip((frames, rows, columns), rope_dim, strict=True)
    ]
    angle = jnp.concatenate(angles, axis=-1)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-2)


def _frequencies(channels: int, theta: float) -> Float[np.ndarray, " K2"]:
    """theta^(-2 j / n) with fp32 exponents as published, on the host: compilers' powers differ in the last place."""
    exponents = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
    return np.float32(1) / (theta ** exponents.astype(np.float64)).astype(np.float32)


def pool_grid(grid: Float[Array, "T H W 2 K2"], cell: int) -> Float[Array, "T2 H2 W2 2 K2"]:
    """Averages cos and sin over cells of ``cell``^3 positions; the last ones are repeated to fill a cell."""
    t, h, w, _, pairs = grid.shape
    # Without this barrier XLA fuses the means with the angles and takes 20 seconds instead of one to compile for a GPU.
    grid = lax.optimization_barrier(grid)
    flat = pad_to_multiple(grid.reshape(1, t, h, w, 2 * pairs), (cell, cell, cell))
    _, t, h, w, _ = flat.shape
    cells = flat.reshape(t // cell, cell, h // cell, cell, w // cell, cell, 2, pairs)
    return cells.mean((1, 3, 5))


def flatten_grid(grid: Float[Array, "T H W 2 K2"]) -> RopeTable:
    """Flattens a grid to tokens in the order frame, row, column."""
    return grid.reshape(-1, *grid.shape[3:])
