"""Flow identities, shifts and rounding."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from helios_jax.config import SchedulerConfig
from helios_jax.diffusion import flow


def test_a_point_and_its_velocity_give_back_both_ends():
    start, end = jax.random.normal(jax.random.key(0), (2, 3, 5))
    sigma = jnp.array([[0.0], [0.3], [1.0]])
    x, v = flow.interpolate(start, end, sigma), flow.velocity(start, end)
    np.testing.assert_allclose(flow.predict_clean(x, v, sigma), end, atol=1e-6)
    np.testing.assert_allclose(x + (1 - sigma) * v, start, atol=1e-6)


@pytest.mark.parametrize(
    ("num_tokens", "mu", "exp_mu"),
    [(540, 0.5480729, 1.729916), (2160, 0.8222917, 2.275709), (8640, 1.9191667, 6.815277)],
)
def test_mu_of_the_default_geometry(num_tokens: int, mu: float, exp_mu: float):
    config = SchedulerConfig.mid()
    assert flow.dynamic_shift_mu(config, num_tokens) == pytest.approx(mu, abs=1e-7)
    assert flow.dynamic_shift_factor(config, mu) == pytest.approx(exp_mu, rel=1e-6)
    assert flow.dynamic_shift_factor(SchedulerConfig.distilled(), mu) == mu


def test_mu_honours_overrides():
    config = SchedulerConfig(base_seq_len=100, max_seq_len=300, base_shift=1.0, max_shift=3.0)
    assert [flow.dynamic_shift_mu(config, n) for n in (0, 100, 200, 300, 400)] == pytest.approx([0, 1, 2, 3, 4])


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0, math.exp(1.9)])
def test_shift_in_odds(factor: float):
    sigmas = np.array([0.0, 1e-3, 0.25, 0.5, 0.999, 1.0])
    shifted = flow.shift_sigmas(sigmas, factor)
    assert shifted[0] == 0
    assert shifted[-1] == pytest.approx(1)
    inner, moved = sigmas[1:-1], shifted[1:-1]
    # The shift multiplies the odds s / (1 - s).
    np.testing.assert_allclose(moved / (1 - moved), factor * inner / (1 - inner), rtol=1e-12)


def test_shift_rejects_a_factor_that_leaves_the_interval():
    with pytest.raises(ValueError, match=r"shift factor -0\.1 must be positive"):
        flow.shift_sigmas(np.array([0.5]), -0.1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_round_to_equals_a_cast(dtype: str):
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    rounded = jax.jit(flow.round_to, static_argnums=1)(jnp.asarray(x), dtype)
    assert rounded.dtype == jnp.float32
    np.testing.assert_array_equal(rounded, x.astype(numpy_dtype).astype(np.float32))
