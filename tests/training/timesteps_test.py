"""Noise levels: published tables, shifts, densities in closed form, weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_cases import keys

from helios_jax.training.timesteps import TimestepSampling, table_entries, training_shift_factor

COUNT = 100_000


@pytest.mark.parametrize(
    ("tokens", "linear", "exponential"),
    [(540, 0.54807, 1.72992), (2160, 0.82229, 2.27571), (8640, 1.91917, 6.81528), (20160, 3.86917, 7.0)],
)
def test_published_shift_factors(tokens, linear, exponential):
    assert training_shift_factor("linear", tokens) == pytest.approx(linear, abs=1e-5)
    assert training_shift_factor("exponential", tokens) == pytest.approx(exponential, abs=1e-5)
    assert training_shift_factor("none", tokens) == 1.0


def test_table_of_stage_1():
    sigma, timestep = TimestepSampling().at(jnp.array([0.0, 0.0009, 0.001001, 0.5, 0.9999, 1.0]), 8640)
    np.testing.assert_allclose(sigma, [1.0, 1.0, 0.999, 0.5, 0.001, 0.001], rtol=1e-7)
    np.testing.assert_array_equal(timestep, [1000, 1000, 999, 500, 1, 1])
    assert (sigma.dtype, timestep.dtype) == (jnp.float32, jnp.float32)


@pytest.mark.parametrize(("shift", "factor"), [("linear", 0.548068), ("exponential", 1.729910)])
def test_shifted_tables(shift, factor):
    table = TimestepSampling(shift=shift).table(540)
    assert table[[0, 500]] == pytest.approx([1.0, factor * 0.5 / (1 + (factor - 1) * 0.5)], abs=1e-5)
    sigma, timestep = TimestepSampling(shift=shift).at(jnp.array([0.25]), 540)
    assert float(timestep[0]) == pytest.approx(1000 * table[250], rel=1e-6)
    assert float(sigma[0]) == pytest.approx(table[250], rel=1e-6)


def test_entries_are_floors():
    table = np.arange(4.0)
    np.testing.assert_array_equal(table_entries(jnp.array([[0.0, 0.2499], [0.25, 1.0]]), table), [[0, 0], [1, 3]])


def standard_normal_below(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def mode_point(w: float, scale: float) -> float:
    return 1 - w - scale * (math.cos(math.pi * w / 2) ** 2 - 1 + w)


@pytest.mark.parametrize(
    ("sampling", "points"),
    [
        # (u, probability of less). sigmoid(x) is the quantile of x under the normal law.
        (TimestepSampling(), [(1 / (1 + math.exp(-x)), standard_normal_below(x)) for x in (-2, -0.5, 0, 1)]),
        (
            TimestepSampling(logit_mean=0.5, logit_std=2.0),
            [(1 / (1 + math.exp(-x)), standard_normal_below((x - 0.5) / 2)) for x in (-2, 0, 3)],
        ),
        (TimestepSampling(density="uniform"), [(x, x) for x in (0.1, 0.5, 0.9)]),
        # u falls with w.
        (TimestepSampling(density="mode"), [(mode_point(w, 1.29), 1 - w) for w in (0.1, 0.5, 0.8)]),
        (TimestepSampling(density="mode", mode_scale=0.5), [(mode_point(w, 0.5), 1 - w) for w in (0.1, 0.5, 0.8)]),
    ],
    ids=["logit_normal", "logit_normal_moved", "uniform", "mode", "mode_half"],
)
def test_densities(sampling, points):
    u = np.asarray(jax.jit(jax.vmap(sampling.draw))(keys(COUNT)))
    assert 0 <= u.min() < u.max() <= 1
    for point, probability in points:
        assert abs((u < point).mean() - probability) <= 3 * math.sqrt(probability * (1 - probability) / COUNT)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("none", [1, 1, 1]),
        ("mode", [1, 1, 1]),
        ("sigma_sqrt", [1, 4, 1e4]),
        ("cosmap", [2 / math.pi, 4 / math.pi, 2 / (math.pi * 0.9802)]),
    ],
)
def test_weights(weighting, expected):
    weights = TimestepSampling(weighting=weighting).weight(jnp.array([1.0, 0.5, 0.01]))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logit_mean": math.nan}, "logit_mean=nan must be a finite number"),
        ({"logit_std": -1.0}, r"logit_std=-1\.0 must be a finite number of at least 0"),
        ({"mode_scale": 2.0}, r"mode_scale=2\.0 must be a finite number from -1 to 1\.75"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0 must be a whole number of at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TimestepSampling(**settings)


@pytest.mark.parametrize("scale", [-1.0, 2 / (math.pi - 2)])
def test_the_mode_density_stays_within_its_range(scale):
    u = np.asarray(jax.vmap(TimestepSampling(density="mode", mode_scale=scale).draw)(keys(1000)))
    assert -1e-6 <= u.min() <= u.max() <= 1 + 1e-6
