"""Adversarial losses against closed forms of simple discriminators, and the cached gradient against the direct one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.config import TransformerConfig
from helios_jax.distillation.crops import crop, uncrop
from helios_jax.distillation.gan import (
    DiscriminatorDraws,
    Gan,
    GeneratorDraws,
    approximate_penalty,
    discriminator_loss,
    gan_cotangent,
    gan_loss,
    generator_loss,
)
from helios_jax.models.discriminator import DiscriminatorConfig

PATCH = (1, 2, 2)
SHAPE = (3, 8, 12, 2)
"""Of a clip; half crops have 4 rows and 6 columns."""

TIMESTEP = jnp.array([300.0, 800.0])
SIGMA = jnp.array([0.25, 0.75])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def clips(seed):
    return normal(seed, 2, *SHAPE)


def linear(weights, x, timestep, condition):
    """One logit, <w, x>."""
    return jnp.einsum("bthwc,thwc->b", x, weights)[:, None]


def curved(params, x, timestep, condition):
    """Two logits that depend on position, timestep and the sample's condition."""
    condition = jnp.repeat(condition, len(x) // len(condition), 0)
    features = jnp.tanh(x * params["scale"] + condition[:, None, None, None])
    mean = jnp.einsum("bthwc,thwl->bl", features, params["place"])
    return mean + 0.001 * timestep[:, None] * jnp.square(x).mean((1, 2, 3, 4))[:, None]


CURVED = {"scale": jnp.array([0.7, -1.2]), "place": normal(20, 3, 4, 6, 2)}
CONDITION = normal(21, 2, 2)


def test_losses_in_numpy():
    fake, real = normal(1, 4, 5), normal(2, 4, 5)
    f, r = np.float64(fake), np.float64(real)
    assert float(generator_loss(fake)) == pytest.approx(np.logaddexp(0, f).mean(), rel=1e-6)
    expected = np.logaddexp(0, -f).mean() + np.logaddexp(0, r).mean()
    assert float(discriminator_loss(fake, real)) == pytest.approx(expected, rel=1e-6)
    assert float(approximate_penalty(fake, real)) == pytest.approx(np.square(f - r).mean(), rel=1e-6)
    assert float(approximate_penalty(fake, real, 0.1)) == pytest.approx(100 * np.square(f - r).mean(), rel=1e-5)


def test_high_logits_mean_generated():
    """Descent raises logits of generated clips and lowers those of real ones; the generator lowers its own."""
    logits = normal(1, 4, 5)
    assert np.all(jax.grad(generator_loss)(logits) > 0)
    of_fake, of_real = jax.grad(discriminator_loss, (0, 1))(logits, logits)
    assert np.all(of_fake < 0)
    assert np.all(of_real > 0)


def test_large_logits_do_not_overflow():
    logits = jnp.array([[-1e4, 1e4]], jnp.bfloat16)
    assert float(generator_loss(logits)) == pytest.approx(5e3, rel=0.01)
    assert np.isfinite(jax.grad(lambda x: discriminator_loss(x, -x))(logits.astype(jnp.float32))).all()


def test_crops_are_slices():
    x, corner = clips(1), jnp.array([[0.0, 0.999], [0.5, 0.2]])
    found = crop(x, corner, (4, 6))
    np.testing.assert_array_equal(found[0], x[0, :, 0:4, 6:12])
    np.testing.assert_array_equal(found[1], x[1, :, 2:6, 1:7])


def test_every_place_is_equally_likely():
    """7 places for 6 of 12 columns; 700 evenly spaced numbers choose each of them 100 times."""
    columns = jnp.broadcast_to(jnp.arange(12.0)[:, None], (700, 1, 4, 12, 1))
    corner = jnp.stack([jnp.zeros(700), (jnp.arange(700) + 0.5) / 700], axis=1)
    first = np.asarray(crop(columns, corner, (4, 6)))[:, 0, 0, 0, 0]
    assert np.unique(first, return_counts=True)[1].tolist() == [100] * 7


def test_uncrop_is_the_transpose_of_crop():
    corner = jnp.array([[0.3, 0.9], [0.7, 0.0]])
    x, part = clips(1), normal(2, 2, 3, 4, 6, 2)
    back = uncrop(part, corner, SHAPE[1:3])
    np.testing.assert_array_equal(back, jax.linear_transpose(lambda x: crop(x, corner, (4, 6)), x)(part)[0])
    assert int((back != 0).sum()) == part.size


def total_of_generator(x, draws, settings, judge, params):
    """The generator's weighted loss as one differentiable function of its samples, with slices instead of ``crop``."""
    sigma = SIGMA[:, None, None, None, None]
    noised = (1 - sigma) * x + sigma * draws.noise
    starts = np.floor(np.asarray(draws.corner) * [5, 7]).astype(int)
    parts = jnp.stack([noised[n, :, a : a + 4, b : b + 6] for n, (a, b) in enumerate(starts)])
    logits = judge(params, parts, TIMESTEP, CONDITION)
    return settings.generator_weight * jnp.log1p(jnp.exp(logits)).mean()


def test_the_cotangent_is_the_direct_gradient():
    settings, x = Gan(), clips(1)
    draws = GeneratorDraws(noise=clips(2), corner=jnp.array([[0.3, 0.9], [0.7, 0.1]]))
    call = {"timestep": TIMESTEP, "sigma": SIGMA, "condition": CONDITION, "draws": draws, "settings": settings}
    found, metrics = jax.jit(lambda x: gan_cotangent(curved, CURVED, x, **call, patch=PATCH))(x)
    direct = jax.jit(lambda x: total_of_generator(x, draws, settings, curved, CURVED))
    value, expected = jax.value_and_grad(direct)(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert float(metrics["gan/generator_loss"]) == pytest.approx(float(value) / 0.05, rel=1e-5)
    # A descent step lowers the loss.
    assert direct(x - found) < value


def without_twins(corners=None):
    return DiscriminatorDraws(corners=jnp.zeros((2, 4, 2)) if corners is None else corners, real=None, fake=None)


def loss(judge, params, settings, draws):
    """The discriminator's loss of two samples."""
    call = {"noise": clips(3), "timestep": TIMESTEP, "sigma": SIGMA, "condition": CONDITION, "patch": PATCH}

    @jax.jit
    def run(fake, real, draws):
        return gan_loss(judge, params, fake, real, draws=draws, settings=settings, **call)

    return run(clips(1), clips(2), draws)


@pytest.mark.parametrize(("divide", "factor"), [(False, 0.01), (True, 1.0)])
def test_penalty_of_a_linear_discriminator(divide, factor):
    """D = <w, x>: on average over z, R1 = 0.01 |w|^2, and |w|^2 when divided by sigma.

    The mean over z = sqrt(n) e_i, for the n unit vectors e_i, is that over white noise.
    """
    shape, n = (1, 4, 2, 2), 16
    weights, zeros = normal(4, *shape), jnp.zeros((n, *shape))
    units = jnp.sqrt(float(n)) * jnp.eye(n).reshape(n, *shape)
    draws = DiscriminatorDraws(corners=jnp.zeros((n, 4, 2)), real=units, fake=None)
    call = {"noise": zeros, "timestep": jnp.zeros(n), "sigma": jnp.zeros(n), "condition": None, "patch": PATCH}
    settings = Gan(crop=1.0, divide_by_sigma=divide)
    total, metrics = jax.jit(
        lambda draws: gan_loss(linear, weights, zeros, zeros, draws=draws, settings=settings, **call)
    )(draws)
    expected = factor * float(jnp.square(weights).sum())
    assert float(metrics["gan/r1"]) == pytest.approx(expected, rel=1e-5)
    assert float(total) == pytest.approx(0.01 * 2 * np.log(2) + 100 * expected, rel=1e-5)


def test_discriminator_loss_with_all_terms():
    """Against crops, noise and losses written out for each sample; condition and timestep go with their sample."""
    settings = Gan(r1=7.0, r2=3.0, r1_sigma=0.2, divide_by_sigma=True, crops="independent")
    corners = jnp.asarray(np.random.default_rng(9).random((2, 4, 2)), jnp.float32)
    draws = DiscriminatorDraws(corners=corners, real=clips(5), fake=clips(6))
    found, metrics = loss(curved, CURVED, settings, draws)

    starts = np.floor(np.asarray(corners) * [5, 7]).astype(int)
    logits = np.empty((4, 2, 2))
    for n, sigma in enumerate(np.asarray(SIGMA)):
        fake, real = ((1 - sigma) * clips(seed)[n] + sigma * clips(3)[n] for seed in (1, 2))
        four = fake, real, real + 0.2 * clips(5)[n], fake + 0.2 * clips(6)[n]
        for kind, (clip, (row, column)) in enumerate(zip(four, starts[n], strict=True)):
            part = clip[None, :, row : row + 4, column : column + 6]
            logits[kind, n] = jax.jit(curved)(CURVED, part, TIMESTEP[n : n + 1], CONDITION[n : n + 1])[0]
    fake, real, real_twin, fake_twin = logits
    value = np.logaddexp(0, -fake).mean() + np.logaddexp(0, real).mean()
    r1, r2 = np.square((real - real_twin) / 0.2).mean(), np.square((fake - fake_twin) / 0.2).mean()
    assert float(found) == pytest.approx(0.01 * value + 7 * r1 + 3 * r2, rel=1e-5)
    parts = {"discriminator_loss": value, "fake_logit": fake.mean(), "real_logit": real.mean(), "r1": r1, "r2": r2}
    assert {name: float(metric) for name, metric in metrics.items()} == pytest.approx(
        {f"gan/{name}": part for name, part in parts.items()}, rel=1e-4
    )


def test_without_penalties_there_are_two_clips_per_sample():
    seen = []

    def judge(params, x, timestep, condition):
        seen.append(x.shape)
        return curved(params, x, timestep, condition)

    _, metrics = loss(judge, CURVED, Gan(r1=0.0), without_twins())
    assert seen == [(4, 3, 4, 6, 2)]
    assert "gan/r1" not in metrics


def test_no_gradient_reaches_the_generator():
    def of_fake(fake):
        call = {"noise": clips(3), "timestep": TIMESTEP, "sigma": SIGMA, "condition": CONDITION, "patch": PATCH}
        return gan_loss(curved, CURVED, fake, clips(2), draws=without_twins(), settings=Gan(r1=0.0), **call)[0]

    np.testing.assert_array_equal(jax.grad(of_fake)(clips(1)), 0)


def test_twins_differ_by_noise_alone_only_in_a_shared_crop():
    """With z = 0 the penalty is 0 in a shared crop; independent crops, as published, penalise the places too."""
    keys = jax.random.split(jax.random.key(0), 2)
    penalties = {}
    for crops in ("shared", "independent"):
        settings = Gan(crops=crops)
        draws = jax.jit(jax.vmap(lambda key, settings=settings: settings.draw_discriminator(key, SHAPE)))(keys)
        still = DiscriminatorDraws(corners=draws.corners, real=jnp.zeros_like(draws.real), fake=None)
        penalties[crops] = float(loss(curved, CURVED, settings, still)[1]["gan/r1"])
    assert penalties["shared"] == 0
    assert penalties["independent"] > 0.01


def test_draws_depend_on_the_sample_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    settings = Gan(r2=1.0)

    def draw(key):
        return settings.draw_discriminator(key, SHAPE), settings.draw_generator(key, SHAPE)

    whole, alone = jax.jit(jax.vmap(draw))(keys), jax.jit(draw)(keys[1])
    for many, one in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(many[1], one)
    assert not np.array_equal(whole[0].real, whole[0].fake)
    assert len(np.unique(whole[0].corners[0], axis=0)) == 1
    assert len(np.unique(Gan.published().draw_discriminator(keys[0], SHAPE).corners, axis=0)) == 4


def test_half_crops_of_the_published_size():
    assert Gan().crop_size(48, 80, PATCH) == (24, 40)
    assert Gan(crop=0.7).crop_size(20, 8, PATCH) == (14, 4)
    assert Gan(crop=1.0).crop_size(8, 12, PATCH) == (8, 12)


def test_settings_are_checked_against_network_and_latents():
    Gan().check(TransformerConfig.helios_14b(), 9, 48, 80)
    small = DiscriminatorConfig(hooks=(0, 1), width=8, groups=2)
    with pytest.raises(ValueError, match=r"gan.crop=0.5 of 8 x 8 latents: .* 9 x 2 x 2 positions"):
        Gan(heads=small).check(TransformerConfig.tiny(), 9, 8, 8)
    Gan(heads=small, crop=1.0).check(TransformerConfig.tiny(), 9, 8, 8)
    with pytest.raises(ValueError, match="only blocks 0 to 1"):
        Gan().check(TransformerConfig.tiny(), 9, 48, 80)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 0.0}, "gan.crop must be greater than 0"),
        ({"crop": 1.5}, "at most 1"),
        ({"r1_sigma": 0}, "gan.r1_sigma must be greater than 0"),
        ({"r1": -1.0}, "at least 0"),
        ({"start_step": 1.5}, "whole number"),
        ({"crops": "equal"}, "'shared', 'independent'"),
        ({"reals": "both"}, "'critic', 'generator'"),
        ({"separate": "no"}, "True or False"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    gan = Gan()
    # Set afterwards, because the type checks of the tests would refuse some of these values first.
    for name, value in settings.items():
        object.__setattr__(gan, name, value)
    with pytest.raises(ValueError, match=message):
        gan.__post_init__()
