"""The generator's rollout: a chunk sampled like the distilled model's, but stopped at a random step of every level.

On level l, with the schedule's sigma_k and t_k, k < N, and an exit e_l that is uniform over 0 ... N - 1:

    x_0     = noise; above the first level alpha up(m) + beta b, m from the level below                   (1)
    m_k     = x_k - sigma_k v(x_k, t_k)                                                                   (2)
    x_(k+1) = (1 - sigma_(k+1)) m_k + sigma_(k+1) x_0                                                     (3)

for k = 0 ... e_l, and m at the exit is the level's result. (1) is the transition of ``diffusion.pyramid``
(``sampling.chunk.begin_level``), (2) and (3) are the step of ``diffusion.solvers.Dmd``: the rollout calls the functions
that sampling calls. The generator is thus trained on its own samples, at every step that sampling takes (backward
simulation of DMD2, arXiv 2405.14867; on a pyramid, arXiv 2603.04379).

On each level only the call at the exit is differentiated. Its input was computed without gradients unless k = 0, so

    the gradient passes from level l to the level below if and only if e_l = 0.                           (4)

The host draws the exits and knows from them which levels a gradient can reach (``lowest_trained``). For the levels
below, nothing is saved for the backward pass. That number is static and the exits are data, so there are as many
programs as levels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import SchedulerConfig
from helios_jax.diffusion.solvers import Solver, SolverState, make_solver
from helios_jax.sampling.chunk import begin_first_level, begin_level
from helios_jax.sampling.plan import LevelPlan
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
    """The white noise of a rollout.

    Attributes:
        initial: Noise of the full size; halved for the first level.
        blocks: Noise from which the block noise of each level above the first is computed, at the level's size.
    """

    initial: Float[Array, "*B T H W C"]
    blocks: tuple[Float[Array, "*B T _ _ C"], ...]


def draw_exits(seed: Sequence[int], plans: Sequence[LevelPlan]) -> tuple[int, ...]:
    """Exits of all levels. Equal seeds, such as (seed of the run, step), give equal exits in every process."""
    counts = [len(plan.step_scalars) for plan in plans]
    return tuple(map(int, np.random.default_rng(list(seed)).integers(counts)))


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
    exits: Int[AnyArray, " levels"],
    lowest: int,
) -> Float[Array, "B T H W C"]:
    """Samples a chunk in fp32, differentiable with respect to ``network`` by (4).

    Args:
        velocity: Calls the network.
        network: Its parameters.
        scheduler: Scheduler of a few-step model.
        plans: From ``sampling.plan.plan_chunk``. The published training does not round the timestep input of the
            network, and shifts a level by its own number of tokens (``SchedulerConfig.shift_after_upsampling``).
        draws: Noise.
        exits: From ``draw_exits``; may be traced.
        lowest: ``lowest_trained`` of the exits; static. Levels above it exit at their first step.

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
        # With sigma_(k+1) = 0 the step (3) ends at m_k for every exit.
        to_end_point = plan.step_scalars * np.array([1, 0], np.float32)
        trained = network if level >= lowest else frozen
        state = _step(solver, velocity, trained, to_end_point, plan.timesteps, level, state, exit_step)
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
        return _step(solver, velocity, frozen, plan.step_scalars, plan.timesteps, level, state, k)

    return jax.lax.fori_loop(0, exit_step, step, jax.lax.stop_gradient(state))


def _step[M](
    solver: Solver,
    velocity: Velocity[M],
    network: M,
    step_scalars: Float[np.ndarray, "steps 2"],
    timesteps: Float[np.ndarray, " steps"],
    level: int,
    state: SolverState,
    step: Int[AnyArray, ""] | int,
) -> SolverState:
    """Runs step number ``step`` of the solver."""
    timestep = jnp.broadcast_to(jnp.asarray(timesteps)[step], state.x.shape[:1])
    v = velocity(network, state.x, timestep, level).astype(jnp.float32)
    return solver.step(state, v, jnp.asarray(step_scalars)[step])
