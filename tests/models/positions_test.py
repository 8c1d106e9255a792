"""Layouts of the context other than the published one: frame indices, tables and tokens, against numbers by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.checkpoints.random import random_network
from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.config.fields import SettingError
from helios_jax.context import Tiers
from helios_jax.models.rope import frame_indices
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.training.flops import history_tokens
from pallas_kernels.qk_norm_rope import qk_norm_rope

CONFIG = dataclasses.replace(TransformerConfig.tiny(), num_layers=1, in_channels=4, out_channels=4)
ABSOLUTE = HistoryConfig(positions="absolute")


@pytest.fixture(scope="module")
def model() -> HeliosTransformer:
    def draw(mean, std, shape, dtype):
        generator = np.random.default_rng(sum(shape))
        return jnp.asarray(mean + std * generator.standard_normal(shape), dtype)

    return random_network(HeliosTransformer, CONFIG, "float32", draw).module


def indices(layout: HistoryConfig, chunk: int) -> list[list[float]]:
    return [np.asarray(stream).tolist() for stream in frame_indices(layout, chunk)]


def test_absolute_indices_are_numbers_of_frames():
    """Chunk 5 begins at frame 45; the 19 frames before it are 26 to 44, and the anchor is frame 0."""
    long, mid, short, current = indices(ABSOLUTE, 5)
    assert long == list(range(26, 42))
    assert (mid, short) == ([42, 43], [0, 44])
    assert current == list(range(45, 54))
    # Before the video there is nothing: these frames are zero.
    assert indices(ABSOLUTE, 0)[0] == list(range(-19, -3))
    free = HistoryConfig(positions="absolute", keep_first_frame=False)
    assert list(itertools.chain(*indices(free, 3))) == list(range(7, 36))
    assert indices(HistoryConfig(), 5) == indices(HistoryConfig(), 0)


@pytest.mark.parametrize(
    ("sizes", "relative", "published_tokens"),
    [
        ((16, 2, 1), [list(range(1, 17)), [17, 18], [0, 19], list(range(20, 29))], 240 + 240 + 1920),
        ((0, 2, 1), [[], [1, 2], [0, 3], list(range(4, 13))], 240 + 1920),
        ((0, 0, 1), [[], [], [0, 1], list(range(2, 11))], 1920),
    ],
)
def test_tiers_that_are_left_out(model, sizes, relative, published_tokens):
    """At 384 x 640 pixels the long and the mid tier have 240 tokens each, anchor and last frame 1920."""
    layout = HistoryConfig(sizes=sizes)
    assert [list(stream) for stream in layout.frame_indices] == relative
    assert layout.buffer_frames == sum(sizes)
    assert history_tokens(TransformerConfig.helios_14b(), layout, 48, 80) == published_tokens
    frames = [jax.ShapeDtypeStruct((2, count, 8, 8, 4), jnp.float32) for count in (sizes[0], sizes[1], 1 + sizes[2])]
    # At 8 x 8 latents: 4 tokens of the long tier, 4 of the mid tier, 16 for each other frame.
    count = 4 * (sizes[0] > 0) + 4 * (sizes[1] > 0) + 32

    def tokens(long, mid, short):
        return model.context(Tiers(long=long, mid=mid, short=short)).tokens

    assert jax.eval_shape(tokens, *frames).shape == (2, count, CONFIG.dim)
    table = jax.eval_shape(lambda: model.rope(layout, (8, 8), (4, 4), 9))
    assert table.shape == (count + 9 * 4, 2, CONFIG.head_dim // 2)


def test_the_short_tier_is_always_there():
    with pytest.raises(SettingError, match="sizes"):
        HistoryConfig(sizes=(16, 2, 0))


def cos_and_sin(frame: float, row: int, column: int) -> np.ndarray:
    angles = [
        position * 10000.0 ** (-np.arange(0, channels, 2) / channels)
        for position, channels in zip((frame, row, column), CONFIG.rope_dim, strict=True)
    ]
    return np.stack([function(np.concatenate(angles)) for function in (np.cos, np.sin)])


def test_the_table_of_absolute_positions(model):
    """Chunk 7, by hand: frames 44 to 71, with the long tier averaged over cells of 4."""
    tables = jax.jit(lambda chunk: model.rope(ABSOLUTE, (8, 8), (8, 8), 9, chunk))
    table = np.asarray(tables(jnp.array(7)))
    cell = np.mean([cos_and_sin(44 + t, y, x) for t in range(4) for y in range(4) for x in range(4)], axis=0)
    np.testing.assert_allclose(table[0], cell, atol=1e-5)
    anchor, last = 4 + 4, 4 + 4 + 16
    np.testing.assert_allclose(table[anchor + 5], cos_and_sin(0, 1, 1), atol=1e-5)
    np.testing.assert_allclose(table[last + 15], cos_and_sin(62, 3, 3), atol=1e-5)
    np.testing.assert_allclose(table[40], cos_and_sin(63, 0, 0), atol=1e-5)
    np.testing.assert_allclose(table[-1], cos_and_sin(71, 3, 3), atol=1e-5)
    each = tables(jnp.array([2, 7]))
    np.testing.assert_allclose(each[1], table, atol=1e-6)
    np.testing.assert_allclose(each[0, -1], cos_and_sin(26, 3, 3), atol=1e-5)


@pytest.mark.slow
def test_samples_are_rotated_by_their_own_tables():
    draws = jax.random.split(jax.random.key(0), 3)
    qkv, tables = jax.random.normal(draws[0], (2, 5, 24)), jax.random.normal(draws[1], (2, 5, 2, 2))
    scale = jax.random.normal(draws[2], (8,))
    both = qk_norm_rope(qkv, qkv, scale, scale, tables, k_start=8)
    for number in range(2):
        one = qkv[number : number + 1]
        alone = qk_norm_rope(one, one, scale, scale, tables[number], k_start=8)
        for found, expected in zip(both, alone, strict=True):
            np.testing.assert_allclose(found[number], expected[0], rtol=1e-6)
    with pytest.raises(NotImplementedError, match="one for all samples"):
        qk_norm_rope(qkv, qkv, scale, scale, tables, k_start=8, implementation="pallas")


@pytest.mark.slow
def test_only_the_anchor_tells_absolute_from_relative_positions(model):
    """Attention sees differences of positions: without an anchor, all chunks are alike."""
    graph, state = nnx.split(model)
    forward = jax.jit(lambda layout, *rest: nnx.merge(graph, state)(*rest[:4], layout, chunk=rest[4]), static_argnums=0)
    keys = jax.random.split(jax.random.key(1), 5)
    long, mid, short, x = (
        jax.random.normal(key, (2, count, 8, 8, 4)) for key, count in zip(keys, (16, 2, 2, 9), strict=False)
    )
    inputs = x, jnp.array([500.0, 100.0]), jnp.zeros((2, 3, 32)), Tiers(long=long, mid=mid, short=short)
    chunks, zero = jnp.array([6, 30]), jnp.array([0, 0])
    for keep, alike in ((False, True), (True, False)):
        relative, absolute = (
            forward(HistoryConfig(keep_first_frame=keep, positions=positions), *inputs, number)
            for positions, number in (("relative", zero), ("absolute", chunks))
        )
        assert (np.abs(relative - absolute).max() < 1e-4 * np.abs(relative).max()) == alike
