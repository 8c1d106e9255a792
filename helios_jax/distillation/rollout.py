"""The generator's rollout: a chunk sampled as the distilled model samples, but left at a random step of every level.

On level l, with the schedule's sigma_k and t_k, k < N, and an exit e_l that is uniform over 0 ... N - 1:

    x_0     = noise; above the first level alpha up(m) + beta b, m from the level below                   (1)
    m_k     = x_k - sigma_k v(x_k, t_k)                                                                   (2)
    x_(k+1) = (1 - sigma_(k+1)) m_k + sigma_(k+1) x_0                                                     (3)

for k = 0 ... e_l, and m at the exit goes on. (1) is the transition of ``diffusion.pyramid``, (2) and (3) are the step
of ``diffusion.solvers.Dmd``. So the generator is trained on its own samples, at every step that it will be asked for
(backward simulation of DMD2, arXiv 2405.14867; on a pyramid, arXiv 2603.04379).

Of each level only the call at the exit is differentiated. What it reads was made without gradients unless k = 0, so

    the gradient passes from level l to the level below if and only if e_l = 0.                           (4)

The host draws the exits and knows with them which levels a gradient can reach (``lowest_trained``): nothing is kept of
the others. That number is static and the exits are data, so there are as many programs as levels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import SchedulerConfig
from helios_jax.diffusion.solvers import Solver, SolverState, make_solver
from helios_jax.sampling.chunk import LevelPlan, begin_first_level, begin_level
from helios_jax.typing import AnyArray, Array, Float, Int


@runtime_checkable
class Velocity[M](Protocol):
    """A network call."""

    def __call__(
        self, network: M, x: Float[Array, "B T H W C"], timestep: Float[Array, " B"], level: int
    ) -> Float[Array, "B T H W C"]:
        """The velocity of ``x`` at ``timestep``; ``network`` is a pytree of parameters."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutDraws:
    """Everything random about a rollout but its exits; white noise.

    Attributes:
        initial: At the full size; halved for the first level.
        blocks: Behind the block noise of each level but the first, at the level's size.
    """

    initial: Float[Array, "B T H W C"]
    blocks: tuple[Float[Array, "B T _ _ C"], ...]


def draw_exits(seed: Sequence[int], plans: Sequence[LevelPlan]) -> tuple[int, ...]:
    """Exits of all levels. Equal seeds, such as (seed of the run, step), give equal exits in every process."""
    return tuple(map(int, np.random.default_rng(list(seed)).integers([len(plan.rows) for plan in plans])))


def lowest_trained(exits: Sequence[int]) -> int:
    """The lowest level that a gradient reaches, by (4)."""
    late = [level for level, step in enumerate(exits) if step > 0]
    return max(late, default=0)


def rollout[M](
    velocity: Velocity[M],
    network: M,
    scheduler: SchedulerConfig,
    plans: Sequence[LevelPlan],
    draws: RolloutDraws,
    exits: Int[AnyArray, " L"],
    lowest: int,
) -> Float[Array, "B T H W C"]:
    """A chunk in fp32, differentiable with respect to ``network`` by (4).

    Args:
        velocity: Calls the network.
        network: Its parameters.
        scheduler: That of a few-step model.
        plans: From ``sampling.chunk.plan_chunk``. The published training tells the network timesteps as they are, and
            shifts a level by its own number of tokens (``SchedulerConfig.shift_after_upsampling``).
        draws: Noise.
        exits: From ``draw_exits``. May be traced.
        lowest: ``lowest_trained`` of the exits. Static: above it, levels end at their first step.

    Raises:
        ValueError: The scheduler's solver is not "dmd".
    """
    if scheduler.solver != "dmd":
        raise ValueError(f"a rollout takes the steps of solver 'dmd'; the scheduler has {scheduler.solver!r}")
    solver, frozen = make_solver(scheduler), jax.lax.stop_gradient(network)
    state = begin_first_level(solver, draws.initial, len(plans) - 1)
    for level, plan in enumerate(plans):
        if plan.transition is not None:
            noise = draws.blocks[level - 1]
            state = begin_level(solver, state, noise, plan.transition, scheduler.gamma, jnp.float32)
        exit_step = 0
        if level <= lowest:
            exit_step = exits[level]
            state = _before_exit(solver, velocity, frozen, plan, level, state, exit_step)
        rows = plan.rows * np.array([1, 0], np.float32)  # on to the end point
        trained = network if level >= lowest else frozen
        state = _step(solver, velocity, trained, rows, plan.timesteps, level, state, exit_step)
    return solver.finish(state, jnp.float32)


def _before_exit[M](
    solver: Solver,
    velocity: Velocity[M],
    frozen: M,
    plan: LevelPlan,
    level: int,
    state: SolverState,
    exit_step: Int[AnyArray, ""],
) -> SolverState:
    """The state at the exit, by (2) and (3), without gradients."""

    def step(k: Int[Array, ""], state: SolverState) -> SolverState:
        return _step(solver, velocity, frozen, plan.rows, plan.timesteps, level, state, k)

    return jax.lax.fori_loop(0, exit_step, step, jax.lax.stop_gradient(state))


def _step[M](
    solver: Solver,
    velocity: Velocity[M],
    network: M,
    rows: Float[np.ndarray, "N 2"],
    timesteps: Float[np.ndarray, " N"],
    level: int,
    state: SolverState,
    step: Int[AnyArray, ""] | int,
) -> SolverState:
    """The solver's step number ``step``."""
    timestep = jnp.broadcast_to(jnp.asarray(timesteps)[step], state.x.shape[:1])
    v = velocity(network, state.x, timestep, level).astype(jnp.float32)
    return solver.step(state, v, jnp.asarray(rows)[step])
