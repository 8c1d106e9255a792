"""Distribution matching on data whose scores are known: where the generator converges to.

Of Gaussian data N(m, s^2) the velocity of x_t = (1 - t) x + t eps is exactly

    v = (x_t - E[x | x_t]) / t,    E[x | x_t] = m + k (x_t - (1 - t) m),    k = (1 - t) s^2 / ((1 - t)^2 s^2 + t^2)
                                                                                                          (1)

The mean enters linearly, so that guidance of weight w by data with the same deviation and mean n is (1) with mean
m + w (m - n).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helios_jax.distillation.dmd import critic_loss
from helios_jax.distillation.scores import NoiseLevel, Scores, per_sample, score_cotangent

MEAN, STD = jnp.array([1.5, -0.5]), jnp.array([0.4, 0.9])
"""Of the data, by channel."""
SHAPE = (64, 2, 3, 3, 2)


def gaussian(mean, std):
    """The exact score of Gaussian data, equation (1)."""

    def velocity(x, timestep):
        sigma = per_sample(timestep / 1000)
        k = (1 - sigma) * std**2 / ((1 - sigma) ** 2 * std**2 + sigma**2)
        return (x - mean - k * (x - (1 - sigma) * mean)) / sigma

    return velocity


def noise_level(key, shape, timestep=None):
    """Noise of all samples, at uniform timesteps unless others are given."""
    noise, times = jax.random.split(key)
    if timestep is None:
        timestep = jax.random.uniform(times, shape[:1], minval=20, maxval=980)
    return NoiseLevel(noise=jax.random.normal(noise, shape), timestep=timestep, sigma=timestep / 1000)


START = {"shift": jnp.array([-1.0, 0.5]), "scale": jnp.array([1.2, 0.3])}
"""The affine generator x = shift + scale z."""


def generate(generator, key):
    return generator["shift"] + generator["scale"] * jax.random.normal(key, SHAPE)


def descend(generator, fake, negative, guidance, key, level, rate=0.5):
    """One update of the affine generator by gradient descent."""
    x, pull_back = jax.vjp(lambda generator: generate(generator, key), generator)
    scores = Scores(fake=fake, real=gaussian(MEAN, STD), negative=negative)
    (gradient,) = pull_back(score_cotangent(scores, x, level, guidance)[0])
    return jax.tree.map(lambda value, slope: value - rate * slope, generator, gradient)


@pytest.mark.parametrize(("guidance", "negative_mean"), [(0.0, MEAN), (3.0, jnp.array([1.4, -0.4]))])
def test_with_exact_scores_the_generator_reaches_the_data(guidance, negative_mean):
    """Mean m + w (m - n) and deviation s; without noise in the limit, where both scores agree at every point."""

    def update(generator, key):
        drawn, level = jax.random.split(key)
        fake, negative = gaussian(generator["shift"], generator["scale"]), gaussian(negative_mean, STD)
        return descend(generator, fake, negative, guidance, drawn, noise_level(level, SHAPE)), None

    keys = jax.random.split(jax.random.key(0), 600)
    found, _ = jax.jit(lambda start: jax.lax.scan(update, start, keys))(START)
    np.testing.assert_allclose(found["shift"], MEAN + guidance * (MEAN - negative_mean), atol=2e-3)
    np.testing.assert_allclose(found["scale"], STD, atol=2e-3)


TIMES = jnp.array([150.0, 400.0, 650.0, 900.0])
"""The timesteps at which the learned score is a table of affine functions."""


def affine(critic):
    """The fake score gain[t] x + offset[t]."""

    def velocity(x, timestep):
        row = jnp.argmin(jnp.abs(timestep[:, None] - TIMES), axis=1)
        return critic["gain"][row][:, None, None, None] * x + critic["offset"][row][:, None, None, None]

    return velocity


@pytest.mark.slow
def test_with_a_learned_score_the_generator_reaches_the_data():
    """The critic, trained on samples alone, ends at (1) for the generator's distribution, which is that of the data."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 4000))

    def drawn_level(key):
        times, noise = jax.random.split(key)
        return noise_level(noise, SHAPE, jax.random.choice(times, TIMES, SHAPE[:1]))

    def learn(state, key):
        critic, kept, generator = state
        drawn, at = jax.random.split(key)
        x, level = generate(generator, drawn), drawn_level(at)

        def loss(critic):
            return critic_loss(affine(critic)(level.noised(x), level.timestep), level.noise, x)

        change, kept = optimizer.update(jax.grad(loss)(critic), kept)
        return (optax.apply_updates(critic, change), kept, generator), None

    def update(state, key):
        generator, critic, kept, rate = state
        drawn, level, learning = jax.random.split(key, 3)
        fake, negative = affine(critic), gaussian(MEAN, STD)
        generator = descend(generator, fake, negative, 0.0, drawn, drawn_level(level), rate)
        (critic, kept, _), _ = jax.lax.scan(learn, (critic, kept, generator), jax.random.split(learning, 5))
        return (generator, critic, kept, rate * 0.996), None

    critic = {"gain": jnp.zeros((4, 2)), "offset": jnp.zeros((4, 2))}
    start = START, critic, optimizer.init(critic), jnp.float32(0.5)
    keys = jax.random.split(jax.random.key(1), 800)
    (generator, critic, *_), _ = jax.jit(lambda start: jax.lax.scan(update, start, keys))(start)
    np.testing.assert_allclose(generator["shift"], MEAN, atol=0.05)
    np.testing.assert_allclose(generator["scale"], STD, atol=0.05)
    at_zero, at_one = (gaussian(MEAN, STD)(jnp.full((4, 1, 1, 1, 2), x), TIMES)[:, 0, 0, 0] for x in (0.0, 1.0))
    np.testing.assert_allclose(critic["gain"], at_one - at_zero, atol=0.1)
    np.testing.assert_allclose(critic["offset"], at_zero, atol=0.15)


MODES = 2 * np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3)], axis=1)
SPREAD = 0.25
"""Centres and standard deviation of a mixture of Gaussians in the plane."""
POINTS = (256, 1, 1, 1, 2)


def mixture(x, timestep):
    """The exact score of the mixture: equation (1) for each mode, weighted by how likely it is given x_t."""
    sigma = (timestep / 1000)[:, None, None]
    points, modes = x.reshape(-1, 1, 2), jnp.asarray(MODES, jnp.float32)
    variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
    away = points - (1 - sigma) * modes
    likely = jax.nn.softmax(-0.5 * (jnp.square(away) / variance).sum(-1), axis=-1)
    ends = modes + (1 - sigma) * SPREAD**2 / variance * away
    end = jnp.einsum("bm,bmc->bc", likely, ends)
    return ((points[:, 0] - end) / sigma[:, 0]).reshape(x.shape)


def layers(key, inputs, width=48):
    """Weights of three hidden layers and a last one that begins at zero."""
    sizes = [(inputs, width), (width, width), (width, width), (width, 2)]
    keys = jax.random.split(key, 4)
    return [
        {"w": (n < 3) * jax.random.normal(k, size) * (2 / size[0]) ** 0.5, "b": jnp.zeros(size[1])}
        for n, (k, size) in enumerate(zip(keys, sizes, strict=True))
    ]


def perceptron(weights, x):
    for layer in weights[:-1]:
        x = jax.nn.silu(x @ layer["w"] + layer["b"])
    return x @ weights[-1]["w"] + weights[-1]["b"]


def from_noise(generator, z):
    """A clip of one pixel for each z."""
    return (z + perceptron(generator, z)).reshape(-1, 1, 1, 1, 2)


def learned(critic):
    def velocity(x, timestep):
        points, t = x.reshape(-1, 2), timestep[:, None] / 1000
        return perceptron(critic, jnp.concatenate([points, t, jnp.sin(np.pi * t), points * t], axis=1)).reshape(x.shape)

    return velocity


def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|."""

    def mean_distance(x, y):
        return np.linalg.norm(x[:, None] - y[None], axis=-1).mean()

    return 2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)


@pytest.mark.slow
def test_the_generator_covers_all_modes_of_a_mixture():
    """A generator and a fake score, both small networks, are trained in turn like in stage 3, five to one."""
    steps = 3000
    critic_optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, 5 * steps, alpha=0.1), b1=0.0)
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-4, steps, alpha=0.02), b1=0.0)

    def learn(state, key):
        critic, kept, generator = state
        drawn, at = jax.random.split(key)
        x, level = from_noise(generator, jax.random.normal(drawn, (POINTS[0], 2))), noise_level(at, POINTS)

        def loss(critic):
            return critic_loss(learned(critic)(level.noised(x), level.timestep), level.noise, x)

        change, kept = critic_optimizer.update(jax.grad(loss)(critic), kept)
        return (optax.apply_updates(critic, change), kept, generator), None

    def update(state, key):
        generator, of_generator, critic, of_critic = state
        drawn, at, learning = jax.random.split(key, 3)
        z = jax.random.normal(drawn, (POINTS[0], 2))
        x, pull_back = jax.vjp(lambda generator: from_noise(generator, z), generator)
        scores = Scores(fake=learned(critic), real=mixture, negative=mixture)
        cotangent, _ = score_cotangent(scores, x, noise_level(at, POINTS), 0.0)
        change, of_generator = optimizer.update(pull_back(cotangent)[0], of_generator)
        generator = optax.apply_updates(generator, change)
        keys = jax.random.split(learning, 5)
        (critic, of_critic, _), _ = jax.lax.scan(learn, (critic, of_critic, generator), keys)
        return (generator, of_generator, critic, of_critic), None

    generator, critic = layers(jax.random.key(0), 2), layers(jax.random.key(1), 6)
    start = generator, optimizer.init(generator), critic, critic_optimizer.init(critic)
    # The critic learns the first samples before the generator moves.
    warm = functools.partial(jax.lax.scan, learn, xs=jax.random.split(jax.random.key(2), 1000))

    @jax.jit
    def train(start):
        generator, of_generator, critic, of_critic = start
        (critic, of_critic, _), _ = warm((critic, of_critic, generator))
        return jax.lax.scan(
            update, (generator, of_generator, critic, of_critic), jax.random.split(jax.random.key(3), steps)
        )[0]

    rng = np.random.default_rng(4)
    data = MODES[rng.integers(len(MODES), size=2000)] + SPREAD * rng.standard_normal((2000, 2))
    z = jnp.asarray(rng.standard_normal((2000, 2)), jnp.float32)
    before, after = (np.asarray(from_noise(g, z)).reshape(-1, 2) for g in (generator, train(start)[0]))
    assert energy_distance(before, data) > 0.1
    assert energy_distance(after, data) <= 0.02, energy_distance(after, data)
    away = np.linalg.norm(after[:, None] - MODES, axis=-1)
    counts = np.bincount(away[away.min(1) < 3 * SPREAD].argmin(1), minlength=len(MODES))
    assert counts.min() >= 0.5 * 2000 / len(MODES), counts
    assert counts.sum() >= 0.85 * 2000, counts
