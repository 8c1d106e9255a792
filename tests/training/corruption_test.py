"""Corruption of the history: formulas, what stays untouched, and frequencies over 1e5 draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.config import HistoryConfig
from helios_jax.context import History
from helios_jax.training.corruption import (
    Corruption,
    CorruptionDraws,
    Saturation,
    SaturationDraws,
    Segments,
    blur,
    corrupt,
    corrupt_history,
    history_segments,
    saturate,
    saturate_history,
)

corrupt = jax.jit(corrupt, static_argnums=(2, 3))
corrupt_history = jax.jit(corrupt_history, static_argnums=(2, 3))
saturate = jax.jit(saturate, static_argnums=(2, 3))
blur = jax.jit(blur)

LAYOUT = HistoryConfig()
NOISE, BLUR = Corruption(clean=0.0, blur=0.0), Corruption(clean=0.0, blur=1.0)
COUNT = 100_000


def latents(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def draws_for(batch: int, *shape: int) -> CorruptionDraws:
    """Draws from numpy, which compiles nothing."""
    generator = np.random.default_rng(1)
    clean, mode = generator.random((2, batch))
    sigma, scale = generator.random((2, batch, shape[0]))
    noise = generator.standard_normal((batch, *shape))
    arrays = {"clean": clean, "mode": mode, "sigma": sigma, "scale": scale, "noise": noise}
    return CorruptionDraws(**{name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()})


def saturation_draws_for(batch: int, frames: int) -> SaturationDraws:
    clean, side, strength = np.random.default_rng(2).random((3, batch, frames)).astype(np.float32)
    return SaturationDraws(clean=jnp.asarray(clean), side=jnp.asarray(side), strength=jnp.asarray(strength))


def many(config: Corruption | Saturation, *shape):
    """The library's draws for 1e5 samples."""
    keys = jax.random.split(jax.random.key(1), COUNT)
    return jax.jit(jax.vmap(lambda key: config.draw(key, *shape)))(keys)


def within_three_sigma(fraction: float, probability: float, count: int = COUNT) -> bool:
    return abs(fraction - probability) <= 3 * np.sqrt(probability * (1 - probability) / count)


def test_segments_of_the_published_history():
    segments = history_segments(LAYOUT)
    assert segments == Segments(lengths=(1, 9, 2, 7), windows=(1, 9, 9))
    assert segments.first_frames.tolist() == [0, *[1] * 9, *[10] * 2, *[12] * 7]
    assert segments.window_ids.tolist() == [0, *[1] * 9, *[2] * 9]


@pytest.mark.parametrize(
    ("layout", "lengths", "windows"),
    [
        (HistoryConfig(keep_first_frame=False), (2, 9, 2, 7), (2, 9, 9)),
        (HistoryConfig(sizes=(4, 2, 1), chunk_frames=3), (1, 3, 2, 1), (1, 3, 3)),
        (HistoryConfig(sizes=(15, 2, 1)), (9, 2, 7), (9, 9)),
        (HistoryConfig(sizes=(4, 2, 1)), (7,), (7,)),
        (HistoryConfig(sizes=(2, 2, 2), chunk_frames=2), (2, 2, 2), (2, 2, 2)),
    ],
)
def test_segments_of_other_histories(layout, lengths, windows):
    assert history_segments(layout) == Segments(lengths=lengths, windows=windows)


@pytest.mark.parametrize(("size", "scale"), [((48, 80), 0.9), ((20, 30), 0.93), ((16, 24), 0.5), ((7, 10), 0.05)])
def test_blur_is_an_antialiased_resize_and_back(size, scale):
    x = latents(2, 3, *size, 2)
    small = [max(1, round(scale * side)) for side in size]
    expected = jax.image.resize(x, (2, 3, *small, 2), "linear", antialias=True)
    expected = jax.image.resize(expected, x.shape, "linear", antialias=True)
    np.testing.assert_allclose(blur(x, jnp.full((2, 3), scale)), expected, atol=2e-5)  # resize rounds its positions


def test_blur_at_full_size_changes_nothing():
    x = latents(1, 2, 6, 10, 3)
    np.testing.assert_array_equal(blur(x, jnp.ones((1, 2))), x)


def test_noise_has_one_level_per_frame():
    x, draws = latents(2, 4, 3, 2, 2), draws_for(2, 4, 3, 2, 2)
    sigma = np.asarray(draws.sigma)[:, :, None, None, None] / 3
    expected = (1 - sigma) * np.asarray(x) + sigma * np.asarray(draws.noise)
    np.testing.assert_allclose(corrupt(x, draws, NOISE, Segments.whole(4)), expected, atol=1e-6)
    assert np.unique(sigma).size == 8


def test_noise_per_segment_and_blur_share_the_draws_of_the_first_frame():
    x, segments = latents(2, 5, 10, 12, 2), Segments(lengths=(2, 3), windows=(5,))
    draws = draws_for(2, 5, 10, 12, 2)
    per_segment = dataclasses.replace(NOISE, sigma_per="segment")
    shared = dataclasses.replace(
        draws, sigma=draws.sigma[:, jnp.array([0, 0, 2, 2, 2])], scale=draws.scale[:, jnp.array([0, 0, 2, 2, 2])]
    )
    np.testing.assert_array_equal(corrupt(x, draws, per_segment, segments), corrupt(x, shared, NOISE, segments))
    wide = dataclasses.replace(BLUR, blur_scale=(0.3, 1.0))
    np.testing.assert_array_equal(corrupt(x, draws, wide, segments), corrupt(x, shared, wide, segments))
    assert not np.array_equal(corrupt(x, draws, wide, segments), corrupt(x, draws, wide, Segments.whole(5)))


def i2v_history() -> History:
    """An anchor and the newest frame, of two samples; the second has no context at all."""
    frames = jnp.zeros((2, 19, 4, 4, 2)).at[0, -1].set(latents(4, 4, 2))
    return History(frames=frames, anchor=jnp.zeros((2, 1, 4, 4, 2)).at[0].set(latents(1, 4, 4, 2, seed=3)))


@pytest.mark.parametrize("config", [NOISE, BLUR, Corruption()])
def test_zero_frames_stay_zero(config):
    history = i2v_history()
    draws = draws_for(2, 20, 4, 4, 2)
    out = corrupt_history(history, draws, dataclasses.replace(config, blur_scale=(0.3, 0.6), clean=0.0), LAYOUT)
    assert not np.asarray(out.frames[0, :-1]).any()
    assert not np.asarray(out.frames[1]).any()
    assert not np.asarray(out.anchor[1]).any()
    assert (out.frames[0, -1] != history.frames[0, -1]).all()
    assert (out.anchor[0] != history.anchor[0]).all()


def test_by_window_noise_reaches_zero_frames_beside_real_ones():
    """The published behaviour after an image-to-video drop: 8 zero frames of the last window become noise."""
    draws = draws_for(2, 20, 4, 4, 2)
    own = corrupt_history(i2v_history(), draws, dataclasses.replace(NOISE, zero_test="window"), LAYOUT)
    assert not np.asarray(own.frames[0, :10]).any()
    assert np.asarray(own.frames[0, 10:]).all()
    assert not np.asarray(own.frames[1]).any()
    assert Corruption.published().zero_test == "window"


def test_clean_clips_are_bit_equal():
    x = latents(3, 4, 3, 2, 2)
    draws = dataclasses.replace(draws_for(3, 4, 3, 2, 2), clean=jnp.array([0.05, 0.15, 0.099]))
    out = corrupt(x, draws, Corruption(), Segments.whole(4))
    assert [bool((a == b).all()) for a, b in zip(out, x, strict=True)] == [True, False, True]


def test_saturation_scales_the_distance_to_grey():
    x, segments = latents(2, 5, 3, 2, 4), Segments(lengths=(2, 3), windows=(5,))
    config = Saturation(clean=0.5)
    draws = dataclasses.replace(
        saturation_draws_for(2, 5),
        clean=jnp.array([[0.9, 0, 0.1, 0, 0], [0.6, 0, 0.7, 0, 0]]),
        side=jnp.array([[0.2, 0, 0.2, 0, 0], [0.6, 0, 0.3, 0, 0]]),
        strength=jnp.array([[0.5, 0, 0.5, 0, 0], [0.25, 0, 1.0, 0, 0]]),
    )
    factor = np.array([[0.6495, 0.6495, 1, 1, 1], [1.17575, 1.17575, 0.999, 0.999, 0.999]])[:, :, None, None, None]
    mean = np.asarray(x).mean(-1, keepdims=True)
    out = saturate(x, draws, config, segments)
    np.testing.assert_allclose(out, mean + factor * (np.asarray(x) - mean), atol=1e-6)
    np.testing.assert_array_equal(out[0, 2:], x[0, 2:])
    np.testing.assert_allclose(np.asarray(out).mean(-1, keepdims=True), mean, atol=1e-6)


def test_saturation_never_alters_the_anchor_nor_zero_frames():
    history, config = i2v_history(), Saturation(clean=0.0)
    out = saturate_history(history, saturation_draws_for(2, 19), config, LAYOUT)
    np.testing.assert_array_equal(out.anchor, history.anchor)
    assert not np.asarray(out.frames[:, :-1]).any()
    assert (out.frames[0, -1] != history.frames[0, -1]).all()


def test_frequencies_of_corruption():
    """Clips whose two pixels are 1 and 3, without noise: what was done to them can be read off."""
    config = Corruption(blur_scale=(0.5, 0.5))
    draws = many(config, (2, 1, 2, 1))
    draws = dataclasses.replace(draws, noise=jnp.zeros_like(draws.noise))
    x = jnp.broadcast_to(jnp.array([1.0, 3.0])[:, None], (COUNT, 2, 1, 2, 1))
    out = np.asarray(corrupt(x, draws, config, Segments.whole(2)))[:, :, 0, :, 0]
    clean = (out[:, 0, 0] == 1) & (out[:, 0, 1] == 3)
    blurred = (out == 2).all((1, 2))
    assert within_three_sigma(clean.mean(), 0.1)
    assert within_three_sigma(blurred.mean(), 0.9 * 0.1)
    sigma = 1 - out[~clean & ~blurred, :, 0]
    np.testing.assert_allclose(out[~clean & ~blurred, :, 1], 3 * (1 - sigma), rtol=1e-6)
    assert 0 <= sigma.min() < 1e-4
    assert 1 / 3 - 1e-4 < sigma.max() <= 1 / 3
    error = 1 / np.sqrt(len(sigma))
    std = 1 / 3 / np.sqrt(12)
    np.testing.assert_allclose(sigma.mean(0), 1 / 6, atol=3 * std * error)
    # The standard deviation of (u - 1/2)^2 for uniform u is 1 / sqrt(180).
    np.testing.assert_allclose(((3 * sigma - 0.5) ** 2).mean(0), 1 / 12, atol=3 * error / np.sqrt(180))
    assert abs(np.corrcoef(sigma.T)[0, 1]) <= 3 * error


def test_frequencies_of_saturation():
    """Two channels 0 and 2 become 1 - s and 1 + s."""
    draws = many(Saturation(), 2)
    x = jnp.broadcast_to(jnp.array([0.0, 2.0]), (COUNT, 2, 1, 1, 2))
    segments = Segments(lengths=(1, 1), windows=(2,))
    factor = np.asarray(saturate(x, draws, Saturation(), segments))[:, :, 0, 0, 1] - 1
    for s in factor.T:
        pale, strong = s[s < 1], s[s > 1]
        assert within_three_sigma(1 - (len(pale) + len(strong)) / COUNT, 0.1)
        for side, low, high in ((pale, 0.3, 0.999), (strong, 1.001, 1.7)):
            assert within_three_sigma(len(side) / COUNT, 0.45)
            assert low - 1e-6 <= side.min() < side.max() <= high + 1e-6
            error = 3 * (high - low) / np.sqrt(12 * len(side))
            assert side.mean() == pytest.approx((low + high) / 2, abs=error)
    assert within_three_sigma(((factor[:, 0] < 1) & (factor[:, 1] < 1)).mean(), 0.45**2)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Corruption, {"clean": 1.1}, r"clean=1\.1 must be a finite number from 0 to 1"),
        (Corruption, {"clean": float("nan")}, r"clean=nan must be a finite number"),
        (Corruption, {"blur": -0.1}, r"blur=-0\.1 must be"),
        (Corruption, {"max_sigma": 2.0}, r"max_sigma=2\.0 must be a finite number from 0 to 1"),
        (Corruption, {"max_sigma": float("inf")}, r"max_sigma=inf"),
        (Corruption, {"blur_scale": (1.0, 0.9)}, r"blur_scale=\(1\.0, 0\.9\): the lower end comes first"),
        (Corruption, {"blur_scale": (0.9, 1.2)}, r"blur_scale=1\.2 must be a finite number from 0 to 1"),
        (Corruption, {"blur_scale": (0.0, 1.0)}, r"blur_scale=\(0\.0, 1\.0\) must begin above 0"),
        (Saturation, {"clean": 2}, r"clean=2 must be"),
        (Saturation, {"pale": (0.9, 0.3)}, r"pale=\(0\.9, 0\.3\): the lower end comes first"),
        (Saturation, {"pale": (0.3, 1.1)}, r"pale=1\.1 must be a finite number from 0 to 1"),
        (Saturation, {"strong": (0.9, 1.7)}, r"strong=0\.9 must be a finite number of at least 1"),
        (Saturation, {"strong": (1.1, float("inf"))}, r"strong=inf"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)
