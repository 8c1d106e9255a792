"""Regularisers against closed forms and NumPy, and the gradients that they let through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.config import VaeConfig
from helios_jax.distillation import moments
from helios_jax.distillation.moments import LatentMoments, Moments, gaussian_kl, moments_loss
from helios_jax.distillation.regularisers import (
    LevelEnd,
    Regularisers,
    border_loss,
    consistency_loss,
    reencode,
    regulariser_cotangents,
    regulariser_loss,
)
from helios_jax.distillation.rewards import reward_weights, weigh
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.models.vae import WanVae, denormalize, normalize
from helios_jax.training.overrides import frozen, mutable

CHUNK = 2  # latent frames: 5 pixel frames


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


class LinearVae(ConfiguredModule):
    """A VAE that can be followed by hand: colours are a linear map of latents, and the encoder another one.

    As in the real one, the first latent frame is one pixel frame and each of the others is four, here with one step of
    brightness from each to the next.
    """

    def __init__(self, config, *, dtype=jnp.float32, rngs=None):
        self.config, self.dtype = config, dtype
        self.down = nnx.Param(0.1 * normal(20, 16, 3))
        self.up = nnx.Param(normal(21, 3, 16))

    def decode(self, latents):
        colours = latents @ self.down[...]
        first, others = colours[:, :1], jnp.repeat(colours[:, 1:], 4, axis=1)
        ramp = jnp.tile(jnp.arange(4.0), others.shape[1] // 4)
        return jnp.clip(jnp.concatenate([first, others + 0.05 * ramp[:, None, None, None]], axis=1), -1, 1)

    def encode(self, frames):
        batch, _, *rest = frames.shape
        others = frames[:, 1:].reshape(batch, -1, 4, *rest).mean(2)
        mean = jnp.concatenate([frames[:, :1], others], axis=1) @ self.up[...]
        return mean, jnp.zeros_like(mean)


def linear_vae() -> Network:
    """Its latents are not those of the model: z = (raw - 0.5) / 2."""
    return Network.of(LinearVae(VaeConfig(latents_mean=(0.5,) * 16, latents_std=(2.0,) * 16)))


def by_hand(vae: Network, x: jax.Array, *, last_frame: bool = False) -> np.ndarray:
    """A chunk through the linear VAE, or its last pixel frame, in NumPy."""
    down, up, chunk = (np.asarray(array) for array in (vae.module.down[...], vae.module.up[...], x))
    colours = (2 * chunk + 0.5) @ down
    ramp = np.clip(colours[:, 1:, None] + 0.05 * np.arange(4)[:, None, None, None], -1, 1)
    if last_frame:
        return (ramp[:, -1:, -1] @ up - 0.5) / 2
    return (np.concatenate([np.clip(colours[:, :1], -1, 1), ramp.mean(2)], axis=1) @ up - 0.5) / 2


def test_reencoding_has_the_values_of_the_vae_and_passes_gradients_straight_through():
    vae = linear_vae()
    x, slope = normal(1, 2, 2 * CHUNK, 2, 2, 16), normal(2, 2, CHUNK, 2, 2, 16)
    for which, frames in (("first", slice(0, CHUNK)), ("last", slice(CHUNK, None))):
        found, pull = jax.vjp(jax.jit(lambda x, which=which: reencode(vae, x, which, CHUNK)), x)
        np.testing.assert_allclose(found, by_hand(vae, x[:, frames]), atol=1e-5)
        assert float(jnp.abs(found - x[:, frames]).max()) > 0.1
        expected = np.zeros(x.shape, np.float32)
        expected[:, frames] = slope
        np.testing.assert_array_equal(pull(slope)[0], expected)
    with pytest.raises(ValueError, match="3 latent frames are not whole chunks of 2"):
        reencode(vae, x[:, :3], "first", CHUNK)


def test_a_chunk_is_pulled_to_where_the_one_before_it_ends():
    vae = linear_vae()
    x, previous = normal(3, 2, 2 * CHUNK, 2, 2, 16), normal(4, 2, CHUNK, 2, 2, 16).at[1].set(0.0)
    ends = [by_hand(vae, chunk, last_frame=True) for chunk in (previous, x[:, :CHUNK])]
    starts = [x[:, :1], x[:, CHUNK : CHUNK + 1]]
    errors = [0.5 * np.square(start - end).mean((1, 2, 3, 4)) for start, end in zip(starts, ends, strict=True)]
    # The second sample has no past, so it has one border and the first one has two.
    expected = [(errors[0][0] + errors[1][0]) / 2, errors[1][1]]
    loss = jax.jit(lambda x: border_loss(vae, x, previous, CHUNK))
    np.testing.assert_allclose(loss(x), expected, rtol=1e-4)
    slope = np.asarray(jax.grad(lambda x: loss(x).sum())(x))
    wanted = np.zeros(x.shape, np.float32)
    for frame, start, end, shares in ((0, starts[0], ends[0], (0.5, 0)), (CHUNK, starts[1], ends[1], (0.5, 1))):
        wanted[:, frame] = np.array(shares)[:, None, None, None] * (start - end)[:, 0] / start[0].size
    np.testing.assert_allclose(slope, wanted, rtol=1e-3, atol=1e-7)
    with pytest.raises(ValueError, match="smoothness needs a border"):
        border_loss(vae, x[:, :CHUNK], None, CHUNK)


def test_end_points_of_a_level_agree():
    last, earlier = normal(5, 2, 3, 4, 4, 2), normal(6, 3, 2, 3, 4, 4, 2)
    lower = LevelEnd(last=normal(7, 2, 3, 2, 2, 2))  # it exits at its first step
    levels = [lower, LevelEnd(last=last, earlier=earlier)]
    expected = 0.5 * np.square(np.asarray(last) - np.asarray(earlier)).mean((0, 2, 3, 4, 5))
    np.testing.assert_allclose(consistency_loss(levels), expected, rtol=1e-5)
    settings = Regularisers(consistency=0.25)
    (below, top), metrics = regulariser_cotangents(settings, levels)
    np.testing.assert_array_equal(below, np.zeros(below.shape))
    np.testing.assert_allclose(top, 0.25 * (last - earlier.mean(0)) / last.size, rtol=1e-4, atol=1e-8)
    assert metrics["consistency"] == pytest.approx(expected.mean(), rel=1e-5)
    assert metrics["regularisers"] == pytest.approx(0.25 * expected.mean(), rel=1e-5)


def test_steps_that_a_sample_did_not_take_do_not_count():
    last, earlier = normal(5, 2, 3, 4, 4, 2), normal(6, 3, 2, 3, 4, 4, 2)
    taken = jnp.array([[True, True], [True, False], [True, False]])
    errors = 0.5 * np.square(np.asarray(last) - np.asarray(earlier)).mean((2, 3, 4, 5))
    found = consistency_loss([LevelEnd(last=last, earlier=earlier, taken=taken)])
    np.testing.assert_allclose(found, [errors[:, 0].mean(), errors[0, 1]], rtol=1e-5)


def test_the_divergence_of_gaussians_is_that_of_their_densities():
    """Against the integral of p log (p / q) on a fine grid."""
    mean, variance, target = 0.3, 0.5, Moments(mean=-0.2, variance=1.5)
    z, step = np.linspace(-12, 12, 200_001, retstep=True)

    def log_density(mean, variance):
        return -0.5 * (np.log(2 * np.pi * variance) + (z - mean) ** 2 / variance)

    log_p, log_q = log_density(mean, variance), log_density(target.mean, target.variance)
    integral = float((np.exp(log_p) * (log_p - log_q)).sum() * step)
    found = gaussian_kl(jnp.float32(mean), jnp.float32(variance), target)
    assert float(found) == pytest.approx(integral, rel=1e-5)
    assert float(gaussian_kl(jnp.float32(-0.2), jnp.float32(1.5), target)) == pytest.approx(0, abs=1e-7)


def test_moments_of_samples_chunks_and_first_frames():
    x = 1.5 * normal(8, 2, 2 * CHUNK, 4, 4, 3) + 0.4

    def divergence(array, target):
        ratio = (array.var() + (array.mean() - target.mean) ** 2) / target.variance
        return 0.5 * (np.log(target.variance / array.var()) + ratio - 1)

    samples = np.asarray(x, np.float64)
    plain = [divergence(sample, moments.OUTPUT) for sample in samples]
    np.testing.assert_allclose(moments_loss(x, LatentMoments()), plain, rtol=1e-4)
    both = [
        0.7 * whole + 0.3 * divergence(sample[0], moments.OUTPUT_FIRST)
        for whole, sample in zip(plain, samples, strict=True)
    ]
    np.testing.assert_allclose(moments_loss(x, LatentMoments.of_output()), both, rtol=1e-4)
    chunks = [
        np.mean(
            [
                0.7 * divergence(chunk, moments.CHUNK) + 0.3 * divergence(chunk[0], moments.CHUNK_FIRST)
                for chunk in np.split(sample, 2)
            ]
        )
        for sample in samples
    ]
    np.testing.assert_allclose(moments_loss(x, LatentMoments.of_chunks(), CHUNK), chunks, rtol=1e-4)
    # A sample with the moments of the data has no divergence and no gradient.
    standard = (samples - samples.mean((1, 2, 3, 4), keepdims=True)) / samples.std((1, 2, 3, 4), keepdims=True)
    exact = jnp.asarray(0.2 + 0.7 * standard, jnp.float32)
    settings = LatentMoments(all_frames=Moments(mean=0.2, variance=0.49))
    value, slope = jax.value_and_grad(lambda x: moments_loss(x, settings).sum())(exact)
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert float(jnp.abs(slope).max()) < 1e-7
    found = Moments.of(exact)
    assert (found.mean, found.variance) == (pytest.approx(0.2, abs=1e-5), pytest.approx(0.49, rel=1e-4))


def test_the_total_is_the_weighted_sum_of_its_terms():
    vae = linear_vae()
    x, previous = normal(9, 2, CHUNK, 2, 2, 16), normal(10, 2, CHUNK, 2, 2, 16)
    levels = [LevelEnd(last=x, earlier=normal(11, 1, 2, CHUNK, 2, 2, 16))]
    settings = Regularisers(smoothness=0.01, consistency=0.25, moments=LatentMoments(weight=2.0))
    arguments = {"vae": vae, "previous": previous, "chunk_frames": CHUNK}
    total, metrics = regulariser_loss(settings, levels, **arguments)
    terms = {
        "smoothness": float(border_loss(vae, x, previous, CHUNK).mean()),
        "consistency": float(consistency_loss(levels).mean()),
        "moments": float(moments_loss(x, LatentMoments()).mean()),
    }
    assert {name: float(metrics[name]) for name in terms} == pytest.approx(terms, rel=1e-5)
    weights = {"smoothness": 0.01, "consistency": 0.25, "moments": 2.0}
    expected = sum(weights[name] * value for name, value in terms.items())
    assert float(total) == float(metrics["regularisers"]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="needs the VAE"):
        regulariser_loss(settings, levels)


def test_nothing_is_on_by_default():
    settings = Regularisers()
    assert (settings.need_vae, settings.have_loss, settings.rewards) == (False, False, ())
    (cotangent,), metrics = regulariser_cotangents(settings, [LevelEnd(last=normal(1, 1, 1, 2, 2, 2))])
    assert float(jnp.abs(cotangent).max()) == 0
    assert metrics == {"regularisers": 0}


def test_settings_become_flags():
    settings = Regularisers(smoothness=0.01, rewards=(("motion", 2.0),))
    assert frozen(mutable(settings)) == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothness": -1.0}, "smoothness=-1.0 must be a finite number of at least 0"),
        ({"rewards": (("a", 1.0), ("a", 2.0))}, "must name each score once"),
        ({"rewards": (("a", float("nan")),)}, "the weight of reward 'a'=nan must be a finite number"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Regularisers(**settings)


def test_constants_are_checked():
    with pytest.raises(ValueError, match="variance=0 must be above 0"):
        Moments(mean=0.0, variance=0)
    with pytest.raises(ValueError, match="first_share=2 must be"):
        LatentMoments(first_share=2)


def test_rewards_weigh_samples():
    scores = {"quality": np.array([0.0, 1.0, -9.0], np.float32), "motion": np.array([0.0, 0.5, 7.0], np.float32)}
    found = reward_weights(scores, (("quality", 2.0), ("motion", 1.0)))
    np.testing.assert_allclose(found, np.exp([0, (2 + 0.5) / 2, (-10 + 5) / 2]), rtol=1e-6)
    losses = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)
    np.testing.assert_allclose(weigh(jnp.asarray(losses), found), losses * np.asarray(found)[:, None])
    with pytest.raises(ValueError, match="no score 'beauty'; the reward gives quality, motion"):
        reward_weights(scores, (("beauty", 1.0),))
    with pytest.raises(ValueError, match="no weights are given"):
        reward_weights(scores, ())


@pytest.mark.slow
def test_the_published_vae_serves_as_well():
    vae = Network.of(WanVae(VaeConfig(base_dim=4, num_res_blocks=1, dim_mult=(1, 1, 1, 1)), rngs=nnx.Rngs(0)))
    x = normal(12, 1, 2 * CHUNK, 2, 2, 16)

    @jax.jit
    def both(x):
        settings = Regularisers(smoothness=1.0)
        cotangents, metrics = regulariser_cotangents(settings, [LevelEnd(last=x)], vae=vae, chunk_frames=CHUNK)
        frames = vae.module.decode(denormalize(vae.config, x[:, CHUNK:]))
        expected = normalize(vae.config, vae.module.encode(frames)[0])
        return reencode(vae, x, "last", CHUNK), expected, cotangents, metrics

    again, expected, (cotangent,), metrics = both(x)
    np.testing.assert_allclose(again, expected, atol=1e-4)
    assert float(metrics["smoothness"]) > 0
    reached = np.abs(np.asarray(cotangent)).max((0, 2, 3, 4)) > 0
    assert reached.tolist() == [False, False, True, False]  # only the first frame of the second chunk
