"""Solvers against diffusers (recorded), published test vectors and an equation with a closed form."""

import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.config import SchedulerConfig
from helios_jax.diffusion.pyramid import LevelSchedule, downsample_noise, level_schedule, renoise, transition
from helios_jax.diffusion.solvers import Dmd, Euler, Solver, SolverState, UniPC, make_solver
from helios_jax.typing import Array

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data" / "schedules"
CONFIGS = json.loads((DATA / "trajectories.json").read_text())
VELOCITIES: dict[str, Callable[[Array, float], Array]] = {
    "linear": lambda x, sigma: 0.5 * x + 0.25 * sigma,
    "wavy": lambda x, sigma: jnp.sin(3 * x) - sigma * x,
}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def advance(solver: Solver, state: SolverState, velocity: Array, row: Array) -> SolverState:
    """One step as sampling takes it: compiled once per solver, with donated state."""
    return solver.step(state, velocity, row)


def solve(solver: Solver, schedule: LevelSchedule, x: Array, velocity: Callable[[Array, float], Array]) -> np.ndarray:
    """The samples after each step."""
    state, samples = solver.init(x), []
    for row, sigma in zip(solver.coefficients(schedule), schedule.sigmas[:-1], strict=True):
        state = advance(solver, state, velocity(state.x, np.float32(sigma)), row)
        samples.append(np.asarray(state.x))
    return np.stack(samples)


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (UniPC(variant="bh2"), [0.936827, 0.860526, 0.767636, 0.652541, 0.479761]),
        (UniPC(variant="bh1"), [0.936827, 0.868922, 0.778089, 0.668977, 0.492874]),
        (Euler(), [0.936827, 0.858220, 0.758318, 0.628833, 0.460845]),
    ],
)
def test_scalar_vectors(solver: Solver, expected: list[float]):
    schedule = level_schedule(SchedulerConfig.base(), 0, 5, mu=1.0)
    assert schedule.sigmas == pytest.approx([0.999632, 0.915390, 0.802654, 0.644023, 0.404308, 0], abs=1e-6)
    samples = solve(solver, schedule, jnp.ones((1,)), VELOCITIES["linear"])
    assert samples[:, 0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_trajectories_equal_diffusers(index: int):
    config = SchedulerConfig.from_diffusers(CONFIGS[index])
    solver = make_solver(config)
    with np.load(DATA / "trajectories.npz") as arrays:
        x = jnp.asarray(arrays["start"])
        names = [name for name in arrays if name.startswith(f"{index}/")]
        assert len(names) == 10
        for name in names:
            _, steps, velocity = name.split("/")
            schedule = level_schedule(config, config.num_levels // 2, int(steps), num_tokens=2160)
            samples = solve(solver, schedule, x, VELOCITIES[velocity])[:, 0]
            np.testing.assert_allclose(samples, arrays[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["dmd", "unipc", "euler"])
def test_pyramid_trajectories_equal_diffusers(name: str, dtype: str):
    """Replays recorded velocities through three levels; samples that diffusers holds in bf16 are bit-exact."""
    kind = "linear" if name == "dmd" else "exponential"
    config = SchedulerConfig(solver=name, use_dynamic_shifting=True, time_shift_type=kind)
    solver = make_solver(config)
    with np.load(DATA / "pyramid.npz") as arrays:
        recorded = {key.split("/")[-1]: arrays[key] for key in arrays if key.startswith(f"{name}/{dtype}/")}
    latents = downsample_noise(downsample_noise(jnp.asarray(recorded["noise"])))
    np.testing.assert_allclose(latents, recorded["start0"], atol=1e-6)
    for level, num_tokens in enumerate((540, 540, 2160)):
        if level > 0:
            latents = renoise(latents, jnp.asarray(recorded[f"block{level}"]), *transition(config, level), dtype)
        count = 2 if name == "dmd" else 4
        rows = solver.coefficients(level_schedule(config, level, count, num_tokens=num_tokens, amplify=True))
        assert rows.shape[0] == 4
        state = solver.init(latents)
        for k, row in enumerate(rows):
            state = advance(solver, state, jnp.asarray(recorded[f"velocity{level}"][k], dtype), row)
            exact = dtype == "bfloat16" and (name == "euler" or (name == "dmd" and (level > 0 or k == 3)))
            expected = recorded[f"samples{level}"][k]
            np.testing.assert_allclose(
                np.asarray(state.x, np.float32), expected, **({"rtol": 0} if exact else {"rtol": 2e-6, "atol": 5e-6})
            )
        latents = solver.finish(state, dtype)
        assert latents.dtype == ("float32" if name == "unipc" else dtype)


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (Euler(), 1.0),
        (UniPC(order=1, disable_corrector=tuple(range(12))), 1.0),
        (UniPC(order=2, disable_corrector=tuple(range(12)), lower_order_final=False), 2.0),
        (UniPC(order=1, variant="bh1"), 2.0),
        (UniPC(order=2, variant="bh1", lower_order_final=False), 3.0),
    ],
)
def test_order_of_convergence(solver: Solver, expected: float):
    """dx/ds = x/2 + s/4 has the solution c e^(s/2) - s/2 - 1; a corrector adds one order."""
    start, end = 0.9, 0.2
    exact = (2 + start / 2) * np.exp((end - start) / 2) - end / 2 - 1

    def error(steps: int) -> float:
        sigmas = np.linspace(start, end, steps + 1)
        schedule = LevelSchedule(timesteps=1000 * sigmas[:-1], sigmas=sigmas)
        return abs(float(solve(solver, schedule, jnp.ones((1,)), VELOCITIES["linear"])[-1, 0]) - exact)

    assert np.log2(error(6) / error(12)) == pytest.approx(expected, abs=0.2)


def test_the_last_step_returns_the_predicted_end_point():
    x, v = jax.random.normal(jax.random.key(0), (2, 1, 2, 2, 2, 2))
    for solver in (Euler(), Dmd(), UniPC()):
        schedule = LevelSchedule(timesteps=np.array([600.0]), sigmas=np.array([0.6, 0.0]))
        state = solver.step(solver.init(x), v, jnp.asarray(solver.coefficients(schedule)[0]))
        np.testing.assert_allclose(state.x, x - 0.6 * v, atol=1e-6)


def test_dmd_returns_to_its_own_start_point():
    """A network that knows the end point keeps every sample on the straight path."""
    start, end = jax.random.normal(jax.random.key(1), (2, 1, 2, 2, 2, 2))
    schedule = level_schedule(SchedulerConfig(solver="dmd"), 0, 3)
    x = schedule.sigmas[0] * start + (1 - schedule.sigmas[0]) * end
    solver = Dmd()
    state = SolverState(x=x, memory=solver.init(start).memory)
    for row, sigma in zip(solver.coefficients(schedule), schedule.sigmas[1:], strict=True):
        state = solver.step(state, start - end, jnp.asarray(row))
        np.testing.assert_allclose(state.x, sigma * start + (1 - sigma) * end, atol=1e-6)


@pytest.mark.parametrize("solver", [Euler(), Dmd(), UniPC()])
def test_one_program_serves_every_step_of_every_schedule(solver: Solver):
    x = jax.random.normal(jax.random.key(2), (1, 2, 2, 2, 2))
    step = jax.jit(solver.step, donate_argnums=0)
    for init, steps in ((solver.init, 4), (jax.jit(solver.init), 1), (solver.init, 7)):
        state = init(x)
        for row in solver.coefficients(level_schedule(SchedulerConfig(), 0, steps)):
            before, state = state, step(state, jnp.ones_like(x, jnp.bfloat16), row)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert step._cache_size() == 1
    assert not x.is_deleted()


def test_make_solver():
    assert make_solver(SchedulerConfig(solver="euler")) == Euler()
    assert make_solver(SchedulerConfig.distilled()) == Dmd()
    config = SchedulerConfig(solver_order=1, solver_type="bh1", lower_order_final=False, disable_corrector=(0,))
    assert make_solver(config) == UniPC(order=1, variant="bh1", lower_order_final=False, disable_corrector=(0,))
