"""Stage 3, regression of recorded end points: closed forms, a straight teacher, and the mean over samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_cases import LAYOUT, draw, keys, loss, networks, sample, silent_networks, value_and_grad

from helios_jax.config import SchedulerConfig, TransformerConfig
from helios_jax.diffusion.solvers import UniPC
from helios_jax.distillation.grids import merged_schedules
from helios_jax.training.batch import OdeBatch, OdePoints, PromptBatch
from helios_jax.training.flops import CountsCalls
from helios_jax.training.methods import Method
from helios_jax.training.methods.ode import Ode
from helios_jax.training.networks import Networks

METHOD = Ode(layout=LAYOUT)
POINTS = 4
GRIDS = merged_schedules(
    SchedulerConfig.distilled(),
    TransformerConfig.helios_14b(),
    student_steps=(POINTS,) * 3,
    teacher_steps=(20,) * 3,
    frames=9,
    size=(48, 80),
)


def ode_batch(size: int, seed: int = 0) -> OdeBatch:
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.standard_normal((size, *shape)), jnp.float32)

    def points(level: int) -> OdePoints:
        frames = (3, 2 << level, 2 << level, 4)
        timesteps, sigmas = GRIDS[level].timesteps, GRIDS[level].sigmas
        return OdePoints(
            latents=normal(POINTS, *frames),
            end=normal(*frames),
            timesteps=jnp.broadcast_to(jnp.float32(timesteps), (size, POINTS)),
            sigmas=jnp.broadcast_to(jnp.float32(sigmas), (size, POINTS)),
        )

    return OdeBatch(
        levels=tuple(map(points, range(3))),
        history=normal(7, 8, 8, 4),
        anchor=normal(1, 8, 8, 4),
        text=PromptBatch(embeds=normal(5, 32)),
    )


def constant_networks(value: float = 0.7):
    """Networks whose velocity is one constant, whatever they are given: straight trajectories."""
    constant = silent_networks()
    constant.transformer.proj_out.bias[...] = jnp.full_like(constant.transformer.proj_out.bias[...], value)
    return constant


def test_loss_of_a_velocity_of_zero():
    """80 / 2 times the mean over levels and samples of the squares between chosen point and end point."""
    batch = ode_batch(2)
    draws = jnp.array([[0.0, 0.3, 0.99], [0.5, 0.74, 1.0]])
    chosen = [[0, 1, 3], [2, 2, 3]]
    value, metrics = loss(METHOD, silent_networks(), batch, draws)
    squares = np.zeros((2, 3))
    for row, level in np.ndindex(2, 3):
        points = batch.levels[level]
        squares[row, level] = np.mean(np.square(points.latents[row, chosen[row][level]] - points.end[row]))
    assert float(value) == pytest.approx(80 / 2 * squares.mean(), rel=1e-5)
    for level in range(3):
        assert float(metrics[f"level{level}/mse"]) == pytest.approx(squares[:, level].mean(), rel=1e-5)


def test_a_straight_teacher_is_its_own_student():
    """UniPC of order 2 follows a constant velocity exactly, and one step from any point reaches the end point."""
    batch, networks_of_teacher = ode_batch(2), constant_networks()
    levels = []
    for points, merged in zip(batch.levels, GRIDS, strict=True):
        solver = UniPC()
        state, kept = solver.init(points.end), []
        for k, row in enumerate(solver.coefficients(merged.schedule)):
            if k in merged.student:
                kept.append(state.x)
            state = solver.step(state, jnp.full_like(state.x, 0.7), jnp.asarray(row))
        levels.append(dataclasses.replace(points, latents=jnp.stack(kept, 1), end=state.x))
        # The velocity moves every number by 0.7 times the distance in noise.
        np.testing.assert_allclose(state.x, points.end - 0.7 * merged.schedule.sigmas[0], atol=2e-5)
    batch = dataclasses.replace(batch, levels=tuple(levels))
    for u in (0.0, 0.3, 0.6, 0.9):
        value, _ = loss(METHOD, networks_of_teacher, batch, jnp.full((2, 3), u))
        assert float(value) < 1e-7
    assert float(loss(METHOD, constant_networks(0.6), batch, jnp.zeros((2, 3)))[0]) == pytest.approx(
        40 * 0.01 * np.mean([merged.sigmas[0] ** 2 for merged in GRIDS]), rel=1e-3
    )


def test_the_network_sees_the_recorded_past_and_truncated_timesteps():
    batch, draws = ode_batch(2), jnp.zeros((2, 3))
    value, _ = loss(METHOD, networks(), batch, draws)
    levels = tuple(dataclasses.replace(points, timesteps=jnp.floor(points.timesteps) + 0.9) for points in batch.levels)
    shifted = dataclasses.replace(batch, levels=levels)
    assert float(loss(METHOD, networks(), shifted, draws)[0]) == float(value)
    for name in ("history", "anchor"):
        other = dataclasses.replace(batch, **{name: jnp.zeros_like(getattr(batch, name))})
        assert abs(float(loss(METHOD, networks(), other, draws)[0]) - float(value)) > 1e-4


@pytest.mark.slow
def test_timesteps_can_be_given_as_they_are():
    batch, draws = ode_batch(2), jnp.zeros((2, 3))
    exact = dataclasses.replace(METHOD, integer_timesteps=False)
    value = float(loss(exact, networks(), batch, draws)[0])
    levels = tuple(dataclasses.replace(points, timesteps=jnp.floor(points.timesteps)) for points in batch.levels)
    floored = dataclasses.replace(batch, levels=levels)
    assert value != float(loss(exact, networks(), floored, draws)[0])
    assert float(loss(exact, networks(), floored, draws)[0]) == pytest.approx(
        float(loss(METHOD, networks(), batch, draws)[0]), rel=1e-6
    )


@pytest.mark.slow
def test_the_loss_is_the_mean_over_samples():
    batch = ode_batch(2, seed=3)
    draws = draw(METHOD, batch, keys(2))
    whole, gradient = value_and_grad(METHOD, networks(), batch, draws)
    parts = [value_and_grad(METHOD, networks(), sample(batch, row), sample(draws, row)) for row in range(2)]
    assert float(whole) == pytest.approx(sum(float(value) for value, _ in parts) / 2, rel=1e-5)
    for path, array in gradient.items():
        np.testing.assert_allclose(array, sum(own[path] for _, own in parts) / 2, rtol=2e-3, atol=1e-4, err_msg=path)


def test_points_are_chosen_uniformly_and_per_sample():
    many, one = jax.random.split(jax.random.key(1), 4000), ode_batch(1)
    draws = jax.vmap(lambda key: METHOD.draw(Networks(), one, key[None])[0])(many)
    counts = np.stack([np.bincount(np.floor(np.asarray(draws[:, level]) * 4).astype(int)) for level in range(3)])
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(4000 * 3 / 16)
    assert np.abs(np.corrcoef(np.asarray(draws).T) - np.eye(3)).max() < 0.08


def test_settings_are_checked():
    assert isinstance(METHOD, Method)
    assert isinstance(METHOD, CountsCalls)
    assert METHOD.network_calls(networks(), ode_batch(1)).current == (3, 12, 48)
    with pytest.raises(ValueError, match=r"method\.weight=0"):
        Ode(weight=0.0)
