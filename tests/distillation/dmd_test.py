"""Distribution matching: scores of an untrained critic, the gradient in numpy, and the noise levels' moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.checkpoints.random import random_network
from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.context import History
from helios_jax.diffusion.flow import interpolate, predict_clean
from helios_jax.distillation.dmd import ScoreLevels, critic_loss, dmd_gradient, dmd_loss, guide
from helios_jax.models.lora import add_lora
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.training.timesteps import training_shift_factor

SHIFT = training_shift_factor("linear", 8640)
LAYOUT = HistoryConfig(sizes=(4, 2, 1), chunk_frames=3)
CONFIG = TransformerConfig(
    num_heads=2,
    head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=32,
    freq_dim=16,
    ffn_dim=32,
    num_layers=1,
    rope_dim=(4, 6, 6),
)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def draw_parameter(mean: float, std: float, shape: tuple[int, ...], dtype) -> jax.Array:
    return jnp.asarray(mean + std * np.random.default_rng(sum(shape)).standard_normal(shape), dtype)


def test_an_untrained_critic_leaves_guidance_alone():
    """Adapters begin with B = 0, so the fake score is the real one: g = -3 (r_c - r_u) / mean |x - r|."""
    real_network = random_network(HeliosTransformer, CONFIG, "float32", draw_parameter).module
    fake_network = add_lora(real_network, rank=4, targets=("blocks/.*",), key=jax.random.key(0))
    x, noise = normal(1, 2, 3, 8, 8, 4), normal(2, 2, 3, 8, 8, 4)
    text, negative = normal(3, 2, 5, 32), normal(4, 2, 5, 32)
    history = History(frames=normal(5, 2, 7, 8, 8, 4), anchor=normal(6, 2, 1, 8, 8, 4))
    levels = ScoreLevels(shift=SHIFT)
    timestep = jnp.array([815.0, 340.0])
    sigma = levels.sigma(timestep)[:, None, None, None, None]
    noised = interpolate(noise, x, sigma)

    @nnx.jit
    def end_point(network, text):
        return predict_clean(noised, network(noised, timestep, text, history.tiers(LAYOUT), LAYOUT), sigma)

    fake, cond, uncond = end_point(fake_network, text), end_point(real_network, text), end_point(real_network, negative)
    np.testing.assert_allclose(fake, cond, atol=1e-5)  # zeros are added, in a program of its own
    assert float(jnp.abs(cond - uncond).max()) > 1e-3

    real = cond + 3 * (cond - uncond)
    expected = -3 * (cond - uncond) / np.abs(x - real).mean((1, 2, 3, 4), keepdims=True)
    np.testing.assert_allclose(dmd_gradient(x, fake, guide(cond, uncond)), expected, atol=1e-5)


def test_gradient_and_loss_in_numpy():
    arrays = [normal(seed, 2, 3, 4, 4, 2) for seed in (1, 2, 3)]
    x, fake, real = map(np.asarray, arrays)
    expected = np.stack([(f - r) / np.abs(a - r).mean() for a, f, r in zip(x, fake, real, strict=True)])
    gradient = dmd_gradient(*arrays)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    value, slope = jax.value_and_grad(dmd_loss)(jnp.asarray(x), gradient)
    np.testing.assert_allclose(slope, expected / x.size, rtol=1e-4, atol=1e-9)
    assert value == pytest.approx(0.5 * np.square(expected).mean(), rel=1e-4)


def test_no_gradient_where_it_is_no_number():
    """A sample that is the real score's own prediction gives 0 / 0."""
    x = normal(1, 2, 3, 4, 4, 2)
    real = x.at[1].add(1.0)
    gradient = dmd_gradient(x, real, real)
    np.testing.assert_array_equal(gradient, 0)


def test_scores_are_constants():
    """No gradient passes through the scores, nor through the critic's target."""
    x, fake, real = (normal(seed, 1, 3, 4, 4, 2) for seed in (1, 2, 3))
    slopes = jax.grad(lambda fake, real: dmd_loss(x, dmd_gradient(x, fake, real)), argnums=(0, 1))(fake, real)
    slopes += jax.grad(lambda noise, x: critic_loss(fake, noise, x), argnums=(0, 1))(real, x)
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0)


def test_critic_loss_in_numpy():
    arrays = [normal(seed, 2, 3, 4, 4, 2) for seed in (1, 2, 3)]
    predicted, noise, x = map(np.asarray, arrays)
    expected = np.square(predicted - noise + x).mean()
    assert float(critic_loss(*arrays)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("step", "mean"), [(0, 824), (500, 607), (2000, 607), (None, 607)])
def test_mean_timesteps(step, mean):
    """Published Monte-Carlo means move from coarse to uniform within 500 steps; ``None`` is the critic."""
    levels, count = ScoreLevels(shift=SHIFT), 40_000
    keys = jax.random.split(jax.random.key(0), count)
    draw = levels.for_critic if step is None else lambda key: levels.for_generator(key, step)
    timesteps = np.asarray(jax.jit(jax.vmap(draw))(keys))
    assert timesteps.mean() == pytest.approx(mean, abs=0.5 + 3 * timesteps.std() / np.sqrt(count))
    assert timesteps.min() >= 20
    assert timesteps.max() <= 980
    np.testing.assert_array_equal(timesteps, np.round(timesteps))


def test_timesteps_are_shifted_only_upwards():
    """The middle of the critic's range, u = 0.5, stays at 500 for a small chunk, whose factor is below 1."""
    levels = ScoreLevels(shift=training_shift_factor("linear", 144))
    assert levels.shift < 0.5
    assert levels._timestep(jnp.array(0.5)) == 500
    assert ScoreLevels(shift=SHIFT)._timestep(jnp.array(0.5)) == round(1000 * SHIFT / (1 + SHIFT))


def test_sigma_is_the_nearest_entry_of_the_shifted_table():
    levels = ScoreLevels(shift=SHIFT)
    timesteps = np.array([20, 300, 607, 824, 980], np.float32)
    sigma = np.asarray(levels.sigma(jnp.asarray(timesteps)))
    u = np.linspace(1, 0.001, 1000)
    table = SHIFT * u / (1 + (SHIFT - 1) * u)
    np.testing.assert_allclose(sigma, [table[np.abs(1000 * table - t).argmin()] for t in timesteps], rtol=1e-6)
    np.testing.assert_allclose(1000 * sigma, timesteps, atol=1.0)


def test_impossible_levels_are_refused():
    with pytest.raises(ValueError, match="0 < low=500"):
        ScoreLevels(shift=1.0, low=500, high=400)
