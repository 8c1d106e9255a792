"""Stage 2: the paths of the levels, their agreement with the sampler, and the loss over level samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_cases import LAYOUT, draw, keys, latent_batch, loss, networks, sample, silent_networks

from helios_jax.config import SchedulerConfig
from helios_jax.diffusion.flow import interpolate, predict_clean, velocity
from helios_jax.diffusion.pyramid import block_noise, pyramid_levels, renoise, transition, upsample_nearest
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.training.corruption import Corruption
from helios_jax.training.injection import Injection
from helios_jax.training.methods.pyramid import Pyramid, level_paths
from helios_jax.training.timesteps import table_entries

MID = SchedulerConfig.mid()
LEVELS = pyramid_levels(MID)
METHOD = Pyramid(context=Injection(layout=LAYOUT, corruption=None, saturation=None))


def white(*shape: int, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def numpy_means(x: np.ndarray) -> np.ndarray:
    b, t, h, w, c = x.shape
    return sum(x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)).reshape(b, t, h // 2, w // 2, c) / 4


@pytest.mark.parametrize(
    ("level", "start", "end", "first", "last"),
    [
        (0, 1.0, 0.666333, 999.0, 743.51174),
        (1, 0.7997597, 0.333666, 743.256, 385.97164),
        (2, 0.5003742, 0.0, 385.614, 1.383615),
    ],
)
def test_published_table(level, start, end, first, last):
    """Coefficients of the paths and timesteps that are trained."""
    noise = jnp.ones((1, 1, 8, 8, 1))
    path = level_paths(LEVELS, 0 * noise, noise)[level]
    scale = 2.0 ** (2 - level)  # a constant is no white noise: halving doubles it
    np.testing.assert_allclose(path.start, scale * start, rtol=1e-6)
    np.testing.assert_allclose(path.end, scale * end, rtol=1e-6)
    path = level_paths(LEVELS, noise, 0 * noise)[level]
    np.testing.assert_allclose(path.start, 0 if level == 0 else 1 - start, rtol=1e-6)
    np.testing.assert_allclose(path.end, 1 - end, rtol=1e-6)
    table = LEVELS[level]
    timesteps = table_entries(jnp.array([0.0, 1.0]), table.timesteps)
    assert timesteps == pytest.approx([first, last], rel=1e-6)
    np.testing.assert_allclose(table_entries(jnp.array([0.0, 0.5, 1.0]), table.sigmas), [0.999, 0.4995, 0.000999])


def test_points_of_a_random_chunk():
    """Against numpy; noise of every level keeps variance 1."""
    clean, noise = white(1, 2, 64, 48, 4, seed=1), white(1, 2, 64, 48, 4, seed=2)
    paths = level_paths(LEVELS, clean, noise)
    x, n = [np.asarray(clean)], [np.asarray(noise)]
    for _ in range(2):
        x.insert(0, numpy_means(x[0]))
        n.insert(0, 2 * numpy_means(n[0]))
    for level, path in enumerate(paths):
        assert n[level].std() == pytest.approx(1, abs=4 / np.sqrt(2 * n[level].size))
        e = LEVELS[level].end
        np.testing.assert_allclose(path.end, e * n[level] + (1 - e) * x[level], atol=1e-5)
        start = n[level]
        if level:
            s = LEVELS[level].start
            start = s * n[level] + (1 - s) * x[level - 1].repeat(2, 2).repeat(2, 3)
        np.testing.assert_allclose(path.start, start, atol=1e-5)


def test_exact_velocity_leads_to_the_end_point():
    paths = level_paths(LEVELS, white(1, 2, 8, 8, 4, seed=1), white(1, 2, 8, 8, 4, seed=2))
    for path, level in zip(paths, LEVELS, strict=True):
        for sigma in level.sigmas[[0, 300, 999]]:
            x = interpolate(path.start, path.end, sigma)
            reached = predict_clean(x, velocity(path.start, path.end), sigma)
            np.testing.assert_allclose(reached, path.end, atol=1e-5)


@pytest.mark.parametrize("level", [1, 2])
def test_the_sampler_enters_a_level_where_training_starts_it(level):
    """Renoising the exact end point below gives (1 - S) up(X) plus white noise of deviation S."""
    count, side = 20_000, 4 * 2 ** (2 - level)  # the level is 4 x 4
    value = jnp.linspace(-1, 1, count)[:, None, None, None, None]
    paths = level_paths(LEVELS, jnp.ones((1, side, side, 1)) * value, white(count, 1, side, side, 1, seed=3))
    noise = block_noise(white(count, 1, 4, 4, 1, seed=4), MID.gamma)
    np.testing.assert_allclose(noise.reshape(count, 2, 2, 2, 2).sum((2, 4)), 0, atol=1e-5)  # gamma = 1/3
    entered = renoise(paths[level - 1].end, noise, *transition(MID, level), jnp.float32)

    start = LEVELS[level].start
    tolerance = 5 * start**2 / np.sqrt(count)
    for points in (paths[level].start, entered):
        residual = np.asarray(points - (1 - start) * value).reshape(count, 16)
        np.testing.assert_allclose(np.cov(residual.T), start**2 * np.eye(16), atol=1.5 * tolerance)
        assert abs(np.corrcoef(residual[:, 0], value.ravel())[0, 1]) < 4 / np.sqrt(count)


def test_three_levels_with_exact_networks_reproduce_the_data():
    """Noise becomes data: every level is one exact step, and every transition is the sampler's."""
    clean = white(2, 2, 8, 8, 4, seed=5)
    paths = level_paths(LEVELS, clean, white(2, 2, 8, 8, 4, seed=6))
    x = paths[0].start
    for level, path in enumerate(paths):
        if level:
            x = renoise(x, block_noise(white(*path.end.shape, seed=level), MID.gamma), *transition(MID, level), x.dtype)
            below = upsample_nearest(paths[level - 1].end)
            alpha, beta = transition(MID, level)
            assert float(jnp.abs(x - alpha * below).max()) < 6 * beta
        x = predict_clean(x, velocity(x, path.end), 1.0)
    np.testing.assert_allclose(x, clean, atol=1e-5)


@pytest.mark.parametrize("ratios", [(1, 2, 1), (2, 1, 3)])
def test_every_level_sample_counts_the_same(ratios):
    """A network that predicts nothing has loss mean |start - end|^2, over samples and not over tokens."""
    batch = latent_batch(2)
    method = dataclasses.replace(METHOD, ratios=ratios)
    draws = draw(method, batch, keys(2))
    assert draws.u.shape == (2, sum(ratios))
    squares = [np.square(np.asarray(p.start - p.end)).mean() for p in level_paths(LEVELS, batch.target, draws.noise)]
    value, metrics = loss(method, silent_networks(), batch, draws)
    assert float(value) == pytest.approx(np.dot(ratios, squares) / sum(ratios), rel=1e-5)
    for level, square in enumerate(squares):
        assert float(metrics[f"level{level}/mse"]) == pytest.approx(square, rel=1e-5)


def test_sum_over_the_samples_of_a_chunk():
    batch, method = latent_batch(2), dataclasses.replace(METHOD, reduction="sum")
    draws = draw(METHOD, batch, keys(2))
    expected = 4 * float(loss(METHOD, silent_networks(), batch, draws)[0])
    assert float(loss(method, silent_networks(), batch, draws)[0]) == pytest.approx(expected, rel=1e-6)


def test_microbatches_average_to_the_batch():
    """Copies of a chunk keep their own context and text in a batch with other chunks."""
    batch = latent_batch(2)
    draws = draw(METHOD, batch, keys(2))
    whole = loss(METHOD, networks(), batch, draws)[0]
    halves = [float(loss(METHOD, networks(), sample(batch, i), sample(draws, i))[0]) for i in range(2)]
    assert halves[0] != pytest.approx(halves[1], rel=1e-3)
    assert float(whole) == pytest.approx(np.mean(halves), rel=1e-6)


@pytest.mark.parametrize("integer", [False, True])
def test_timesteps_may_be_those_of_sampling(integer, monkeypatch):
    """Published pyramid sampling gives floor(t) to the network, and published training t.

    This network predicts its timestep as the velocity, so the loss tells which one it was.
    """
    monkeypatch.setattr(
        HeliosTransformer, "denoise", lambda _, x, t, **__: jnp.broadcast_to(t[:, None, None, None, None], x.shape)
    )
    batch, method = latent_batch(1), dataclasses.replace(METHOD, ratios=(1, 1, 1), integer_timesteps=integer)
    draws = dataclasses.replace(draw(METHOD, batch, keys(1)), u=jnp.array([[0.3, 0.5, 0.999]]))
    _, metrics = loss(method, networks(), batch, draws)
    paths = level_paths(LEVELS, batch.target, draws.noise)
    for level, (path, t) in enumerate(zip(paths, (999 - 0.3 * (999 - 743.256), 564.435, 1.383615), strict=True)):
        t = np.floor(t) if integer else t
        expected = np.square(t - np.asarray(path.start - path.end, np.float64)).mean()
        assert float(metrics[f"level{level}/mse"]) == pytest.approx(expected, rel=2e-6), level


@pytest.mark.slow
def test_input_corruption_moves_end_points_and_target():
    """Noise only: end <- (1 - s) end + s eps, here with one s per frame for all samples of a level."""
    batch = latent_batch(2)
    method = dataclasses.replace(METHOD, input_corruption=Corruption(clean=0.0, blur=0.0))
    draws = draw(method, batch, keys(2))
    assert [d.noise.shape for d in draws.input] == [(2, 3, 2, 2, 4), (2, 3, 4, 4, 4), (2, 3, 8, 8, 4)]
    squares = []
    for path, corruption in zip(level_paths(LEVELS, batch.target, draws.noise), draws.input, strict=True):
        sigma = np.asarray(corruption.sigma)[:, :, None, None, None] / 3
        end = (1 - sigma) * np.asarray(path.end) + sigma * np.asarray(corruption.noise)
        squares.append(np.square(np.asarray(path.start) - end).mean())
    value = loss(method, silent_networks(), batch, draws)[0]
    assert float(value) == pytest.approx(np.dot((1, 2, 1), squares) / 4, rel=1e-5)


def test_ratios_must_fit_the_levels():
    with pytest.raises(ValueError, match=r"ratios=\(1, 1\) given; 3 levels need 3 numbers"):
        Pyramid(ratios=(1, 1))
    with pytest.raises(ValueError, match=r"ratios=\(1, 0, 1\) given"):
        Pyramid(ratios=(1, 0, 1))
