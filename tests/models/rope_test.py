"""Rotary embedding against complex numbers, its pooled tables, and what makes it relative."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.models.rope import flatten_grid, pool_grid, rope_grid

DIM = (4, 6, 6)
FRAMES, HEIGHT, WIDTH = (3, 7, 8), 4, 5


def phases(positions, theta: float = 10000.0) -> np.ndarray:
    """exp(i angle) of every channel pair at one (frame, row, column), float64."""
    angles = [
        p * theta ** (-2 * j / channels)
        for p, channels in zip(positions, DIM, strict=True)
        for j in range(channels // 2)
    ]
    return np.exp(1j * np.array(angles))


def grid_of_phases() -> np.ndarray:
    rows = [phases(position) for position in itertools.product(FRAMES, range(HEIGHT), range(WIDTH))]
    return np.array(rows).reshape(len(FRAMES), HEIGHT, WIDTH, -1)


def as_complex(table) -> np.ndarray:
    """cos + i sin of a table [..., 2, K/2]."""
    table = np.asarray(table, np.float64)
    return table[..., 0, :] + 1j * table[..., 1, :]


def test_table_equals_complex_exponentials():
    grid = rope_grid(FRAMES, HEIGHT, WIDTH, DIM, 10000.0)
    assert grid.dtype == jnp.float32
    np.testing.assert_allclose(as_complex(grid), grid_of_phases(), atol=2e-6)


def test_theta():
    table = as_complex(rope_grid((5,), 1, 1, DIM, 100.0))[0, 0, 0]
    np.testing.assert_allclose(table, phases((5, 0, 0), 100.0), atol=2e-6)


def test_tokens_are_in_frame_row_column_order():
    table = as_complex(flatten_grid(rope_grid(FRAMES, HEIGHT, WIDTH, DIM, 10000.0)))
    np.testing.assert_allclose(table, grid_of_phases().reshape(-1, 8), atol=2e-6)


@pytest.mark.parametrize("cell", [2, 4])
def test_pooled_table_is_the_mean_over_cells(cell):
    """(3, 4, 5) positions: the last frame and column are repeated until cells are full."""
    pooled = as_complex(pool_grid(rope_grid(FRAMES, HEIGHT, WIDTH, DIM, 10000.0), cell))
    grid = grid_of_phases()
    shape = tuple(-(-side // cell) for side in grid.shape[:3])
    assert pooled.shape == (*shape, 8)
    for index in np.ndindex(*shape):
        inside = [
            [min(cell * i + offset, side - 1) for offset in range(cell)]
            for i, side in zip(index, grid.shape[:3], strict=True)
        ]
        np.testing.assert_allclose(pooled[index], grid[np.ix_(*inside)].mean((0, 1, 2)), atol=2e-6)


def test_pooled_pairs_shrink():
    """Averages of unit phases lie inside the unit circle and are not renormalised."""
    pooled = as_complex(pool_grid(rope_grid((0, 1), 2, 2, DIM, 10000.0), 2))[0, 0, 0]
    # |mean of exp(i a w), a = 0, 1| = cos(w / 2) for each frequency w; the other two axes do not rotate the pair.
    frequencies = np.concatenate([10000.0 ** (-2 * np.arange(n // 2) / n) for n in DIM])
    np.testing.assert_allclose(np.abs(pooled), np.cos(frequencies / 2), atol=2e-6)
