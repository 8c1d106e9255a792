"""Level tables, schedules and transitions: published values, recordings of diffusers, closed forms."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.config import SchedulerConfig, TransformerConfig
from helios_jax.diffusion import pyramid
from helios_jax.diffusion.pyramid import (
    check_steps,
    level_schedule,
    level_sizes,
    level_tokens,
    pyramid_levels,
    transition,
)

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data" / "schedules"
RECORDS = json.loads((DATA / "schedules.json").read_text())
NAMES = [
    "-".join(str(r["config"].get(key, "")) for key in ("_class_name", "stages", "time_shift_type", "shift", "gamma"))
    for r in RECORDS
]
TOKENS = (540, 540, 2160)
"""The token counts from which released inference computes mu, at 384x640."""


def test_levels_of_the_published_pyramid():
    levels = pyramid_levels(SchedulerConfig.distilled())
    expected = [
        (0.999, 0.999, 0.666333, 999.0, 743.511744),
        (0.666333, 0.7997597, 0.333666, 743.256, 385.971642),
        (0.333666, 0.5003742, 0.0, 385.614, 1.383615),
    ]
    for level, row in zip(levels, expected, strict=True):
        values = (level.raw_start, level.start, level.end, level.timesteps[0], level.timesteps[-1])
        assert values == pytest.approx(row, abs=1e-6, rel=1e-6)
        assert level.sigmas[[0, -1]] == pytest.approx([0.999, 0.000999])
    assert transition(SchedulerConfig.distilled(), 1) == pytest.approx((0.6001201, 0.6926122), abs=1e-7)
    assert transition(SchedulerConfig.distilled(), 2) == pytest.approx((0.7498129, 0.4333367), abs=1e-7)


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_levels_equal_diffusers(record):
    config = SchedulerConfig.from_diffusers(record["config"])
    for level, expected in zip(pyramid_levels(config), record["levels"], strict=True):
        for name in ("raw_start", "start", "end"):
            assert getattr(level, name) == pytest.approx(expected[name], rel=1e-12)
        for name in ("sigmas", "timesteps"):
            np.testing.assert_allclose(getattr(level, name)[[0, 1, 333, -1]], expected[name], rtol=1e-12)


@pytest.mark.parametrize("record", RECORDS, ids=NAMES)
def test_schedules_equal_diffusers(record):
    config = SchedulerConfig.from_diffusers(record["config"])
    for expected in record["schedules"]:
        schedule = level_schedule(config, **expected["arguments"])
        np.testing.assert_allclose(schedule.sigmas, expected["sigmas"], rtol=1e-12)
        np.testing.assert_allclose(schedule.timesteps, expected["timesteps"], rtol=1e-12)
        np.testing.assert_array_equal(schedule.timesteps.astype(int), np.array(expected["timesteps"]).astype(int))


def test_schedule_of_base():
    schedule = level_schedule(SchedulerConfig.base(), 0, 50, num_tokens=8640)
    expected = {
        0: 0.99985315,
        1: 0.99686551,
        2: 0.99377232,
        10: 0.96444488,
        25: 0.87182215,
        40: 0.62986130,
        47: 0.30291968,
        48: 0.22098606,
        49: 0.12199475,
        50: 0.0,
    }
    assert schedule.sigmas[list(expected)] == pytest.approx(list(expected.values()), abs=1e-8)
    np.testing.assert_array_equal(schedule.timesteps, 1000 * schedule.sigmas[:-1])


DISTILLED = {
    2: [
        ([998.5342, 833.9636], [0.998177, 0.354035, 0]),
        ([742.6046, 512.4629], [0.998177, 0.354035, 0]),
        ([385.1468, 174.7637], [0.998784, 0.451240, 0]),
    ],
    4: [
        ([998.5342, 902.2183, 833.9636, 783.0660], [0.998177, 0.621189, 0.354035, 0.154818, 0]),
        ([742.6046, 607.9129, 512.4629, 441.2859], [0.998177, 0.621189, 0.354035, 0.154818, 0]),
        ([385.1468, 274.5746, 174.7637, 84.2161], [0.998784, 0.711008, 0.451240, 0.215580, 0]),
    ],
    1: [([998.5342], [0.998177, 0]), ([742.6046], [0.998177, 0]), ([385.1468], [0.998784, 0])],
}


@pytest.mark.parametrize("steps", DISTILLED)
def test_schedules_of_distilled(steps: int):
    config = SchedulerConfig.distilled()
    for level, (timesteps, sigmas) in enumerate(DISTILLED[steps]):
        amplifications = [(steps, False)] if steps == 1 else [(steps, False), (steps // 2, True)]
        for asked, amplify in amplifications:
            schedule = level_schedule(config, level, asked, num_tokens=TOKENS[level], amplify=amplify)
            assert schedule.timesteps == pytest.approx(timesteps, abs=1e-4)
            assert schedule.sigmas == pytest.approx(sigmas, abs=1e-6)


@pytest.mark.parametrize(
    ("shift", "tokens", "timesteps", "sigmas"),
    [
        (
            "linear",
            (540, 2160, 8640),
            [(998, 833), (742, 547), (385, 253)],
            [(0.998177, 0.354035), (0.998784, 0.451240), (0.999479, 0.657436)],
        ),
        (
            "exponential",
            TOKENS,
            [(998, 905), (743, 612), (385, 268)],
            [(None, s) for s in (0.633688, 0.633688, 0.694722)],
        ),
        (None, (None,) * 3, [(999, 871), (743, 564), (385, 193)], [(0.999, 0.4999995)] * 3),
    ],
)
def test_schedule_variants(shift, tokens, timesteps, sigmas):
    config = SchedulerConfig(solver="dmd", use_dynamic_shifting=shift is not None, time_shift_type=shift or "linear")
    for level in range(3):
        schedule = level_schedule(config, level, 2, num_tokens=tokens[level])
        assert tuple(schedule.timesteps.astype(int)) == timesteps[level]
        for actual, expected in zip(schedule.sigmas, sigmas[level], strict=False):
            assert expected is None or actual == pytest.approx(expected, abs=1e-6)


def test_schedule_of_mid():
    first, second, third = (
        level_schedule(SchedulerConfig.mid(), level, 20, num_tokens=TOKENS[level]).timesteps for level in range(3)
    )
    assert first[[0, 1, 2, -2, -1]] == pytest.approx([998.85, 990.91, 982.60, 766.28, 743.95], abs=5e-3)
    assert second[[0, -1]] == pytest.approx([743.05, 386.59], abs=5e-3)
    assert third[[0, -1]] == pytest.approx([385.45, 2.26], abs=5e-3)


def test_tokens_per_level():
    transformer = TransformerConfig.helios_14b()
    after = SchedulerConfig(shift_after_upsampling=True)
    assert level_tokens(SchedulerConfig.mid(), transformer, 9, 48, 80) == TOKENS
    assert level_tokens(after, transformer, 9, 48, 80) == (540, 2160, 8640)
    assert level_tokens(SchedulerConfig.base(), transformer, 9, 48, 80) == (8640,)
    assert level_sizes(SchedulerConfig.mid(), 48, 80) == ((12, 20), (24, 40), (48, 80))


def test_schedule_takes_mu_in_place_of_tokens():
    config = SchedulerConfig.distilled()
    by_mu = level_schedule(config, 2, 3, mu=0.8222917)
    by_tokens = level_schedule(config, 2, 3, num_tokens=2160)
    np.testing.assert_allclose(by_mu.sigmas, by_tokens.sigmas, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: level_schedule(SchedulerConfig.mid(), 0, 0, num_tokens=540), "steps=0 given for level 0"),
        (lambda: level_schedule(SchedulerConfig.mid(), 3, 2, num_tokens=540), r"level 3 given; .* levels 0\.\.2"),
        (lambda: level_schedule(SchedulerConfig.mid(), 0, 2), "needs num_tokens .* or mu, got num_tokens=None"),
        (lambda: level_schedule(SchedulerConfig.mid(), 0, 2, num_tokens=540, mu=1.0), "got num_tokens=540 and mu=1.0"),
        (lambda: transition(SchedulerConfig.mid(), 0), r"no transition into level 0; .* levels 1\.\.2"),
        (lambda: check_steps(SchedulerConfig.mid(), 20), r"steps=20 given; this model needs 3 numbers"),
        (lambda: check_steps(SchedulerConfig.mid(), (2, 2)), r"steps=\(2, 2\) given; this model needs 3 numbers"),
        (lambda: check_steps(SchedulerConfig.base(), (2, 2, 2)), r"needs one number, for example steps=50"),
        (lambda: check_steps(SchedulerConfig.mid(), (2, 0, 2)), "every level needs at least 1 step"),
        (lambda: level_sizes(SchedulerConfig.mid(), 48, 82), "48x82 must divide by 4"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_check_steps_accepts():
    assert check_steps(SchedulerConfig.base(), 50) == (50,)
    assert check_steps(SchedulerConfig.mid(), [20, 10, 5]) == (20, 10, 5)


def as_blocks(x):
    """[B,T,H,W,C] -> [blocks, 4], block elements in row-major order."""
    b, t, h, w, c = x.shape
    return np.asarray(x).reshape(b, t, h // 2, 2, w // 2, 2, c).transpose(0, 1, 2, 4, 6, 3, 5).reshape(-1, 4)


@pytest.mark.parametrize("gamma", [1 / 3, 0.2, 0.05])
def test_block_noise_is_the_linear_map_of_the_stated_covariance(gamma: float):
    # One unit vector per block reads off the map's columns.
    basis = np.zeros((1, 1, 2, 8, 1), np.float32)
    for column in range(4):
        basis[0, 0, column // 2, 2 * column + column % 2, 0] = 1
    linear = as_blocks(pyramid.block_noise(jnp.asarray(basis), gamma)).T
    covariance = (1 + gamma) * np.eye(4) - gamma
    np.testing.assert_allclose(linear @ linear.T, covariance, atol=1e-6)


def test_block_noise_has_the_law_of_the_cholesky_factor():
    root = np.sqrt
    factor = [[1, 0, 0, 0], [-1 / 3, root(8) / 3, 0, 0], [-1 / 3, -root(2) / 3, root(2 / 3), 0]]
    factor = np.array([*factor, [-1 / 3, -root(2) / 3, -root(2 / 3), 0]])
    assert factor[1:3, 1:3].ravel() == pytest.approx([0.942809, 0, -0.471405, 0.816497], abs=1e-6)
    np.testing.assert_allclose(factor @ factor.T, 4 / 3 * np.eye(4) - 1 / 3, atol=1e-12)


@pytest.mark.parametrize("gamma", [1 / 3, 0.2])
def test_block_noise_statistics(gamma: float):
    shape = (1, 4, 256, 256, 4)
    blocks = as_blocks(
        jax.jit(pyramid.block_noise, static_argnums=1)(jax.random.normal(jax.random.key(3), shape), gamma)
    )
    expected = (1 + gamma) * np.eye(4) - gamma
    # Var(b_i b_j) = S_ii S_jj + S_ij^2 for normal b.
    deviation = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / len(blocks))
    assert len(blocks) * 4 >= 1e6
    assert (abs(blocks.T @ blocks / len(blocks) - expected) < 3 * deviation).all()
    if gamma == 1 / 3:
        assert abs(blocks.sum(1)).max() < 2e-6


def test_block_noise_forgives_a_gamma_rounded_up():
    z = jax.random.normal(jax.random.key(4), (1, 1, 4, 4, 2))
    noise = pyramid.block_noise(z, 0.33333333334)
    np.testing.assert_allclose(noise, pyramid.block_noise(z, 1 / 3), atol=1e-6)


def test_resampling():
    x = jnp.arange(2 * 4 * 4, dtype=jnp.float32).reshape(1, 2, 4, 4, 1)
    coarse = pyramid.downsample_noise(x)
    assert coarse[0, 0, :, :, 0].tolist() == [[(0 + 1 + 4 + 5) / 2, (2 + 3 + 6 + 7) / 2], [21.0, 25.0]]
    np.testing.assert_array_equal(pyramid.block_mean(pyramid.upsample_nearest(coarse)), coarse)
    assert pyramid.upsample_nearest(coarse)[0, 0, :3, 0, 0].tolist() == [5.0, 5.0, 21.0]


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("gamma", [1 / 3, 0.2])
def test_the_transition_makes_the_noise_white_again(level: int, gamma: float):
    """The covariance inside a block is start^2 I, and the signal is scaled by 1 - start."""
    entered = pyramid_levels(SchedulerConfig(gamma=gamma))[level]
    repeated = entered.raw_start**2 * np.ones((4, 4))
    covariance = entered.alpha**2 * repeated + entered.beta**2 * ((1 + gamma) * np.eye(4) - gamma)
    np.testing.assert_allclose(covariance, entered.start**2 * np.eye(4), atol=1e-12)
    assert entered.alpha * (1 - entered.raw_start) == pytest.approx(1 - entered.start)


@pytest.mark.parametrize("solver", ["dmd", "unipc", "euler"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_renoise_equals_torch(solver: str, dtype: str):
    """The result is bit-exact in bf16, where every product and the sum are rounded."""
    config = SchedulerConfig(solver=solver)
    carried = "float32" if solver == "unipc" else dtype
    renoise = jax.jit(pyramid.renoise, static_argnums=(2, 3, 4))
    with np.load(DATA / "pyramid.npz") as arrays:
        for level in (1, 2):
            latents = jnp.asarray(arrays[f"{solver}/{dtype}/samples{level - 1}"][-1], carried)
            noise = jnp.asarray(arrays[f"{solver}/{dtype}/block{level}"])
            start = renoise(latents, noise, *transition(config, level), dtype)
            assert start.dtype == carried
            expected = arrays[f"{solver}/{dtype}/start{level}"]
            tolerance = 0 if carried == "bfloat16" else 3e-7
            np.testing.assert_allclose(np.asarray(start, np.float32), expected, atol=tolerance, rtol=0)
