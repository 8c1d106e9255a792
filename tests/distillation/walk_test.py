"""The walk and its gradient equal the differentiable rollout."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.config import SchedulerConfig, TransformerConfig
from helios_jax.diffusion.pyramid import level_sizes, upsample_nearest
from helios_jax.distillation.pull_back import lower, pull_back
from helios_jax.distillation.rollout import RolloutDraws, lowest_trained, rollout
from helios_jax.distillation.walk import Route, lowest_reached, walk
from helios_jax.sampling.plan import plan_chunk

SCHEDULER = SchedulerConfig(
    solver="dmd", use_dynamic_shifting=True, time_shift_type="linear", shift_after_upsampling=True
)
SHAPE = (2, 3, 8, 16, 4)
LEVELS = 3
GAINS = jnp.array([0.7, 1.1, 0.4])


def plans(*, amplify: bool):
    return plan_chunk(
        SCHEDULER,
        TransformerConfig.helios_14b(),
        steps=(2,) * LEVELS,
        frames=9,
        size=(48, 80),
        integer_timesteps=False,
        amplify=amplify,
    )


def draws() -> RolloutDraws:
    batch, frames, height, width, channels = SHAPE
    keys = jax.random.split(jax.random.key(0), LEVELS)
    sizes = level_sizes(SCHEDULER, height, width)[1:]
    return RolloutDraws(
        initial=jax.random.normal(keys[0], SHAPE),
        blocks=tuple(
            jax.random.normal(key, (batch, frames, *size, channels)) for key, size in zip(keys[1:], sizes, strict=True)
        ),
    )


def velocity(gains, fixed, x, timestep, level):
    """A nonlinear velocity with a different strength at each level and timestep."""
    strength = gains[level] * (1 + timestep / 1000)[:, None, None, None, None]
    return jnp.tanh(strength * x) + fixed * jnp.roll(x, 1, axis=2)


DIRECTION = jax.random.normal(jax.random.key(9), SHAPE)


@functools.partial(jax.jit, static_argnames=("amplify", "lowest"))
def reference(exits, noise, gains, direction, *, amplify, lowest):
    """The result of the differentiable rollout, and the gradient of its product with ``direction``."""

    def made(gains):
        result = rollout(
            lambda gains, x, timestep, level: velocity(gains, 0.3, x, timestep, level),
            gains,
            SCHEDULER,
            plans(amplify=amplify),
            noise,
            exits,
            lowest,
        )
        return jnp.vdot(direction, result), result

    gradient, result = jax.grad(made, has_aux=True)(gains)
    return result, gradient


def walked(routes, route_of, last_level=None):
    fixed = jnp.float32(0.3)
    x, visits, ends = walk(velocity, GAINS, fixed, SCHEDULER, routes, route_of, draws(), last_level=last_level)
    assert not ends
    return x, visits


@pytest.mark.parametrize("amplify", [False, True])
@pytest.mark.parametrize("exits", list(itertools.product((0, 1), repeat=LEVELS)))
def test_walk_equals_rollout(exits, amplify):
    exits = tuple(3 * e for e in exits) if amplify else exits
    routes = (Route(plans=plans(amplify=amplify), exits=exits),)
    x, visits = walked(routes, np.zeros(2, int))
    assert [visit.level for visit in visits] == list(range(lowest_trained(exits), LEVELS))
    gradient = pull_back(velocity, GAINS, jnp.float32(0.3), routes, visits, DIRECTION, jnp.zeros(LEVELS))
    want, of_gains = reference(
        jnp.array(exits), draws(), GAINS, DIRECTION, amplify=amplify, lowest=lowest_trained(exits)
    )
    np.testing.assert_allclose(x, want, atol=1e-6)
    np.testing.assert_allclose(gradient, of_gains, rtol=1e-6, atol=1e-6 * float(jnp.abs(of_gains).max()))


@pytest.mark.parametrize("exits", [((0, 0, 0), (0, 2, 0)), ((0, 1, 0), (3, 0, 0)), ((1, 0, 1), (0, 0, 0))])
def test_samples_take_routes_of_their_own(exits):
    routes = tuple(Route(plans=plans(amplify=bool(kind)), exits=exits[kind]) for kind in (0, 1))
    x, visits = walked(routes, np.array([1, 0]))
    gradient = pull_back(velocity, GAINS, jnp.float32(0.3), routes, visits, DIRECTION, jnp.zeros(LEVELS))
    total = np.zeros(LEVELS)
    for sample, kind in enumerate((1, 0)):
        only = jnp.zeros(SHAPE).at[sample].set(DIRECTION[sample])
        want, of_gains = reference(
            jnp.array(exits[kind]), draws(), GAINS, only, amplify=bool(kind), lowest=lowest_trained(exits[kind])
        )
        np.testing.assert_allclose(x[sample], want[sample], atol=1e-6)
        total += np.asarray(of_gains)
    np.testing.assert_allclose(gradient, total, rtol=2e-6, atol=1e-6 * np.abs(total).max())


def test_end_points_are_results_of_shorter_walks():
    """m_k of level l is the result of the walk that exits there, and its gradient is that of this walk."""
    fixed, route_of, exits = jnp.float32(0.3), np.array([1, 0]), ((1, 0, 1), (3, 0, 2))
    routes = tuple(Route(plans=plans(amplify=bool(kind)), exits=exits[kind]) for kind in (0, 1))
    x, visits, ends = walk(velocity, GAINS, fixed, SCHEDULER, routes, route_of, draws(), keep_ends=True)
    np.testing.assert_array_equal(x, walked(routes, route_of)[0])
    assert [visit.level for visit in visits] == [0, 1, 2]
    assert ends[1].earlier is None
    total = jnp.zeros(LEVELS)
    cotangents = [jax.random.normal(jax.random.key(30 + level), end.last.shape) for level, end in enumerate(ends)]
    for level, (end, cotangent) in enumerate(zip(ends, cotangents, strict=True)):
        result, its_visits = walked(routes, route_of, last_level=level)
        np.testing.assert_array_equal(end.last, result)
        total = pull_back(velocity, GAINS, fixed, routes, its_visits, cotangent, total)
        for step in range(max(one[level] for one in exits)):
            shorter = [
                Route(plans=route.plans, exits=(*route.exits[:level], min(step, route.exits[level]), 0, 0)[:LEVELS])
                for route in routes
            ]
            result, _ = walked(shorter, route_of, last_level=level)
            taken = np.array([step < exits[kind][level] for kind in route_of])
            np.testing.assert_array_equal(end.taken[step], taken)
            np.testing.assert_allclose(end.earlier[step][taken], result[taken], atol=1e-6)
    found = pull_back(velocity, GAINS, fixed, routes, visits, cotangents[-1], jnp.zeros(LEVELS), inner=cotangents[:-1])
    np.testing.assert_allclose(found, total, rtol=1e-5)


def test_a_lower_level_can_be_the_result():
    exits = (1, 0, 1)
    x, visits = walked((Route(plans=plans(amplify=False), exits=exits),), np.zeros(2, int), last_level=1)
    assert x.shape == (2, 3, 4, 8, 4)
    assert [visit.level for visit in visits] == [0, 1]
    assert visits[0].sigma[0] == plans(amplify=False)[0].step_scalars[1, 0]


def test_lower_is_the_transpose():
    """<c, alpha up(m)> = <lower(c), m>."""
    c, m = DIRECTION, jax.random.normal(jax.random.key(1), (2, 3, 4, 8, 4))
    lowered = lower(c, np.float32(0.6), np.array([True, True]))
    assert jnp.vdot(lowered, m) == pytest.approx(float(jnp.vdot(c, 0.6 * upsample_nearest(m))), rel=1e-4)
    assert not lower(c, np.float32(0.6), np.array([True, False]))[1].any()


def test_lowest_reached():
    assert lowest_reached([(1, 1, 0)]) == 1
    assert lowest_reached([(1, 1, 0), (1, 0, 0)]) == 0
    assert lowest_reached([(0, 0, 1), (0, 2, 0)]) == 1


def test_exits_are_checked():
    with pytest.raises(ValueError, match=r"exits=\(0, 2, 0\) given; the levels have \[2, 2, 2\] steps"):
        Route(plans=plans(amplify=False), exits=(0, 2, 0))
    route = Route(plans=plans(amplify=False), exits=(0, 0, 0))
    with pytest.raises(ValueError, match="solver 'dmd'; the scheduler has 'unipc'"):
        walk(velocity, GAINS, None, SchedulerConfig.mid(), (route,), np.zeros(2, int), draws())
