"""Noise sources: what a draw depends on, its law, and the replay of recorded draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helios_jax as hx

SHAPE = (2, 9, 8, 8, 16)


def test_normal_depends_on_seed_name_and_sample_only():
    noise = hx.KeyNoise(key=jax.random.key(3))
    draw = noise.normal("chunk0/initial", SHAPE)
    noise.normal("chunk1/initial", SHAPE)
    np.testing.assert_array_equal(noise.normal("chunk0/initial", SHAPE), draw)
    np.testing.assert_array_equal(noise.normal("chunk0/initial", (1, *SHAPE[1:])), draw[:1])
    np.testing.assert_array_equal(noise.normal("chunk0/initial", (5, *SHAPE[1:]))[:2], draw)
    np.testing.assert_array_equal(hx.KeyNoise(key=jax.random.key(3)).normal("chunk0/initial", SHAPE), draw)


def test_draws_of_different_names_seeds_and_samples_are_uncorrelated():
    noise, other = (hx.KeyNoise(key=jax.random.key(seed)) for seed in (3, 4))
    first, second = noise.normal("chunk0/initial", SHAPE)
    draws = [
        first,
        second,
        noise.normal("chunk0/block1", SHAPE)[0],
        noise.normal("chunk1/initial", SHAPE)[0],
        other.normal("chunk0/initial", SHAPE)[0],
    ]
    correlations = np.corrcoef([np.ravel(draw) for draw in draws])
    # Standard error 1 / sqrt(9216) = 0.0104; five of them.
    np.testing.assert_allclose(correlations, np.eye(5), atol=0.052)


def test_moments():
    """Four standard errors around the moments of N(0, 1) and U[0, 1) with n draws."""
    n = 2 * 10**5
    noise = hx.KeyNoise(key=jax.random.key(0))
    normal = np.asarray(noise.normal("a", (2, n // 2)), np.float64).ravel()
    uniform = np.asarray(noise.uniform("a", (n,)), np.float64)
    assert abs(normal.mean()) < 4 / n**0.5
    assert abs(np.square(normal).mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs((normal**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert abs(uniform.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    assert abs(np.square(uniform).mean() - 1 / 3) < 4 * (4 / 45 / n) ** 0.5
    assert 0 <= uniform.min() < 1e-4
    assert 1 - 1e-4 < uniform.max() < 1


def test_scalar_uniform():
    noise = hx.KeyNoise(key=jax.random.key(0))
    draws = [noise.uniform(name, ()) for name in ("anchor/sigma", "still/sigma")]
    assert all(draw.shape == () and draw.dtype == jnp.float32 for draw in draws)
    assert draws[0] != draws[1]


def test_recorded_draws_are_replayed():
    recorded = {"chunk0/initial": np.arange(6.0).reshape(2, 3), "anchor/sigma": np.float64(0.25)}
    noise = hx.RecordedNoise(draws=recorded)
    draw = noise.normal("chunk0/initial", (2, 3))
    np.testing.assert_array_equal(draw, recorded["chunk0/initial"])
    assert draw.dtype == np.float32
    assert noise.uniform("anchor/sigma", ()) == 0.25


def test_recorded_draws_that_do_not_fit():
    noise = hx.RecordedNoise(draws={"b": np.zeros((1, 3)), "a": np.zeros(())})
    with pytest.raises(KeyError, match=r"no recorded draw 'chunk1/initial'; recorded: \['a', 'b'\]"):
        noise.normal("chunk1/initial", (1, 3))
    with pytest.raises(ValueError, match=r"recorded draw 'b' has shape \(1, 3\); \(2, 3\) is needed"):
        noise.normal("b", [2, 3])
    with pytest.raises(KeyError, match="no recorded draw 'c'"):
        noise.uniform("c", ())


def test_both_are_noise_sources():
    assert isinstance(hx.KeyNoise(key=jax.random.key(0)), hx.NoiseSource)
    assert isinstance(hx.RecordedNoise(draws={}), hx.NoiseSource)
    assert not isinstance({}, hx.NoiseSource)


def test_seeds_below_32_bits_are_the_keys_of_jax():
    for seed in (0, 1, 5, 2**31 - 1, 2**31, 2**32 - 1):
        key, theirs = hx.KeyNoise.from_seed(seed).key, jax.random.key(seed)
        assert key.dtype == theirs.dtype
        np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(theirs))


def test_seeds_above_32_bits_are_the_keys_of_jax_with_64_bit_types():
    seeds = (2**32, 2**32 + 5, 2**63 - 1)
    with jax.enable_x64(True):
        theirs = [np.asarray(jax.random.key_data(jax.random.key(seed))) for seed in seeds]
    ours = [np.asarray(jax.random.key_data(hx.KeyNoise.from_seed(seed).key)) for seed in seeds]
    np.testing.assert_array_equal(ours, theirs)


def test_every_seed_is_another_key():
    """The key holds all 64 bits of a seed, so that no two seeds share one."""
    generator = np.random.default_rng(0)
    seeds = {
        0,
        1,
        5,
        2**32 - 1,
        2**32,
        2**32 + 5,
        2**63,
        2**64 - 1,
        *map(int, generator.integers(0, 2**64, 50, np.uint64)),
    }
    for seed in seeds:
        upper, lower = map(int, jax.random.key_data(hx.KeyNoise.from_seed(seed).key))
        assert upper << 32 | lower == seed
    draws = [hx.KeyNoise.from_seed(seed).normal("chunk0/initial", (1, 64)) for seed in (5, 2**32 + 5, 2**63 + 5)]
    assert np.abs(np.corrcoef(np.concatenate(draws)) - np.eye(3)).max() < 0.5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "5", None, True])
def test_other_seeds_are_refused(seed):
    with pytest.raises(ValueError, match=r"seed=.* must be a whole number from 0 to 18446744073709551615"):
        hx.KeyNoise.from_seed(seed)


def test_other_generators_keep_all_bits_too():
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(
            jax.random.key_data(hx.KeyNoise.from_seed(7).key), jax.random.key_data(jax.random.key(7))
        )
        keys = [hx.KeyNoise.from_seed(seed).key for seed in (7, 2**32 + 7)]
        assert keys[0] != keys[1]
