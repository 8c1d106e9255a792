"""The generator's rollout: its steps are the sampler's, and gradients pass where equation (4) says."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.config import SchedulerConfig, TransformerConfig
from helios_jax.diffusion.pyramid import level_sizes, transition
from helios_jax.diffusion.solvers import make_solver
from helios_jax.distillation.rollout import RolloutDraws, draw_exits, lowest_trained, rollout
from helios_jax.sampling.chunk import begin_first_level, begin_level
from helios_jax.sampling.plan import plan_chunk

SCHEDULER = SchedulerConfig(
    solver="dmd", use_dynamic_shifting=True, time_shift_type="linear", shift_after_upsampling=True
)
SHAPE = (2, 3, 8, 16, 4)
LEVELS = 3


def schedules(steps=(2, 2, 2), *, amplify: bool = False):
    """Schedules at the published size."""
    return plan_chunk(
        SCHEDULER,
        TransformerConfig.helios_14b(),
        steps=steps,
        frames=9,
        size=(48, 80),
        integer_timesteps=False,
        amplify=amplify,
    )


def draws(seed: int = 0) -> RolloutDraws:
    batch, frames, height, width, channels = SHAPE
    keys = jax.random.split(jax.random.key(seed), LEVELS)
    sizes = level_sizes(SCHEDULER, height, width)
    return RolloutDraws(
        initial=jax.random.normal(keys[0], SHAPE),
        blocks=tuple(
            jax.random.normal(key, (batch, frames, *size, channels))
            for key, size in zip(keys[1:], sizes[1:], strict=True)
        ),
    )


def velocity(gains, x, timestep, level):
    """A nonlinear velocity with a different strength at each level and timestep."""
    strength = gains[level] * (1 + timestep / 1000)[:, None, None, None, None]
    return jnp.tanh(strength * x) + 0.3 * jnp.roll(x, 1, axis=2)


GAINS = jnp.array([0.7, 1.1, 0.4])
EXITS = list(itertools.product((0, 1), repeat=LEVELS))


@pytest.mark.parametrize(
    ("steps", "timesteps", "sigmas"),
    [
        (
            2,
            [(998.534, 833.964), (742.822, 547.193), (385.414, 253.991)],
            [(0.99818, 0.35404), (0.99878, 0.45124), (0.99948, 0.65744)],
        ),
        (
            4,
            [
                (998.5342, 902.2183, 833.9636, 783.0660),
                (742.8216, 640.0038, 547.1926, 462.9951),
                (385.4137, 328.6249, 253.9905, 151.5308),
            ],
            None,
        ),
    ],
)
def test_published_grids(steps, timesteps, sigmas):
    """At 384x640; the second is also where the published ODE pairs were recorded, as an amplified first chunk."""
    plans = schedules((2,) * LEVELS, amplify=steps == 4)
    for level, plan in enumerate(plans):
        np.testing.assert_allclose(plan.timesteps, timesteps[level], atol=1e-3)
        assert plan.step_scalars[-1, 1] == 0
        if sigmas:
            np.testing.assert_allclose(plan.step_scalars[:, 0], sigmas[level], atol=1e-5)


def test_only_few_step_schedules_are_rolled_out():
    with pytest.raises(ValueError, match="solver 'dmd'; the scheduler has 'unipc'"):
        rollout(velocity, GAINS, SchedulerConfig.mid(), schedules(), draws(), jnp.array([0, 0, 0]), 0)


def test_the_last_exits_are_the_sampler():
    """With exits after the last steps, the rollout takes the steps of a sampled chunk, level by level."""
    plans, noise = schedules((2, 3, 2)), draws()
    solver = make_solver(SCHEDULER)
    state = begin_first_level(solver, noise.initial, LEVELS - 1)
    for level, plan in enumerate(plans):
        if level:
            z = noise.blocks[level - 1]
            state = begin_level(solver, state, z, transition(SCHEDULER, level), SCHEDULER.gamma, jnp.float32)
        for scalars, timestep in zip(plan.step_scalars, plan.timesteps, strict=True):
            v = velocity(GAINS, state.x, jnp.full(SHAPE[:1], timestep, jnp.float32), level)
            state = solver.step(state, v, jnp.asarray(scalars))
    result = rollout(velocity, GAINS, SCHEDULER, plans, noise, jnp.array([1, 2, 1]), 2)
    np.testing.assert_allclose(result, solver.finish(state, jnp.float32), atol=2e-6)


@pytest.mark.parametrize("exits", EXITS)
def test_gradients_reach_a_level_if_all_above_exit_at_once(exits):
    """All combinations of exits; gradients match finite differences of the part that is differentiated."""
    plans, noise, lowest = schedules(), draws(), lowest_trained(exits)

    direction = jax.random.normal(jax.random.key(9), SHAPE)

    def made(velocity, gains):
        return rollout(velocity, gains, SCHEDULER, plans, noise, jnp.array(exits), lowest)

    gradient = np.asarray(jax.jit(jax.grad(lambda gains: jnp.vdot(direction, made(velocity, gains))))(GAINS))
    reached = [not any(exits[level + 1 :]) for level in range(LEVELS)]
    np.testing.assert_array_equal(gradient != 0, reached)

    # Of the calls that are differentiated alone: those at the exits, where nothing later comes between.
    def exit_call(gains, x, timestep, level):
        is_exit = jnp.abs(timestep[0] - plans[level].timesteps[exits[level]]) < 1e-2
        return velocity(jnp.where(is_exit & (level >= lowest), gains, GAINS), x, timestep, level)

    step = 2e-2
    for level in np.flatnonzero(reached):
        there, back = (made(exit_call, GAINS.at[level].add(by)) for by in (step, -step))
        difference = float(jnp.vdot(direction, there - back)) / (2 * step)
        assert gradient[level] == pytest.approx(difference, rel=2e-3, abs=2e-3 * float(np.abs(gradient).max()))


def test_exits_are_data():
    """One program per lowest level, and the same numbers as with exits known to the compiler."""
    plans, noise = schedules(), draws()
    program = jax.jit(lambda exits: rollout(velocity, GAINS, SCHEDULER, plans, noise, exits, 2))
    results = [program(jnp.array(exits)) for exits in EXITS if exits[2]]
    assert program._cache_size() == 1
    assert len({np.asarray(result).tobytes() for result in results}) == 4


def test_exits_are_uniform_and_equal_everywhere():
    plans = schedules((2, 4, 3))
    drawn = np.array([draw_exits((7, step), plans) for step in range(6000)])
    for level, count in enumerate((2, 4, 3)):
        share = np.bincount(drawn[:, level], minlength=count) / len(drawn)
        np.testing.assert_allclose(share, 1 / count, atol=3 * np.sqrt(0.25 / len(drawn)))
    assert draw_exits((7, 5), plans) == tuple(drawn[5])


@pytest.mark.parametrize(
    ("exits", "lowest"),
    [((0, 0, 0), 0), ((1, 0, 0), 0), ((1, 1, 0), 1), ((0, 1, 0), 1), ((0, 0, 1), 2), ((1, 0, 1), 2)],
)
def test_lowest_trained(exits, lowest):
    assert lowest_trained(exits) == lowest
