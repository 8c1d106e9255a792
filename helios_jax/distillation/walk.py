"""The generator's rollout in small programs, between which the host walks down the levels.

The rollout is the one of ``distillation.rollout``, whose equations (1) to (4) hold here. There it is one differentiable
function. Here every network call is a program of its own, and of the whole rollout only the inputs of those calls are
kept that a gradient reaches (``Visit``; a few megabytes). The backward pass, in ``pull_back``, computes these calls
once more.

Samples of one batch can take different routes: a first chunk takes twice the steps if it is amplified. Exits belong to
routes and are numbers on the host. Which route a sample takes is data, so no program depends on exits or routes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import SchedulerConfig
from helios_jax.diffusion.solvers import Solver, SolverState, make_solver
from helios_jax.distillation.regularisers import LevelEnd
from helios_jax.distillation.rollout import RolloutDraws
from helios_jax.distillation.scores import per_sample
from helios_jax.sampling.chunk import begin_first_level, begin_level
from helios_jax.sampling.plan import LevelPlan
from helios_jax.typing import AnyArray, Array, Bool, Float, Int


@runtime_checkable
class SplitVelocity[W, F](Protocol):
    """A network call. Implementations are hashable, because they are static under ``jax.jit``."""

    def __call__(
        self, weights: W, fixed: F, x: Float[Array, "B T H W C"], timestep: Float[Array, " B"], level: int
    ) -> Float[Array, "B T H W C"]:
        """The velocity of ``x`` at ``timestep``.

        Args:
            weights: A pytree of parameters, with respect to which ``pull_back.exit_vjp`` differentiates.
            fixed: All other arrays: frozen parameters, text and context.
            x: The noisy chunk.
            timestep: Timestep of each sample.
            level: The level of the pyramid.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Route:
    """The steps of a rollout, on the host.

    Attributes:
        plans: From ``sampling.plan.plan_chunk``, lowest level first.
        exits: The step at which each level ends (``rollout.draw_exits``).

    Raises:
        ValueError: There is not one exit for each level, or an exit is not one of the level's steps.
    """

    plans: tuple[LevelPlan, ...]
    exits: tuple[int, ...]

    def __post_init__(self) -> None:
        counts = [len(plan.step_scalars) for plan in self.plans]
        if len(counts) != len(self.exits) or any(not 0 <= e < n for e, n in zip(self.exits, counts, strict=True)):
            raise ValueError(f"exits={self.exits} given; the levels have {counts} steps, numbered from 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Visit:
    """A call at the exit of a level that a gradient reaches.

    Attributes:
        x: Input of the network.
        timestep: Timestep of each sample.
        sigma: Noise level of each sample.
        is_first: Whether the exit is the first step of the level, through which the gradient passes to the level below.
        level: The level.
    """

    x: Float[Array, "B T H W C"]
    timestep: Float[Array, " B"]
    sigma: Float[Array, " B"]
    is_first: Bool[Array, " B"]
    level: int = dataclasses.field(metadata={"static": True})


def walk[W, F](
    velocity: SplitVelocity[W, F],
    weights: W,
    fixed: F,
    scheduler: SchedulerConfig,
    routes: Sequence[Route],
    route_of: Int[AnyArray, " B"],
    draws: RolloutDraws,
    *,
    last_level: int | None = None,
    keep_ends: bool = False,
) -> tuple[Float[Array, "B T H W C"], tuple[Visit, ...], tuple[LevelEnd, ...]]:
    """Samples a chunk in fp32, without gradients.

    Args:
        velocity: Calls the network.
        weights: See ``SplitVelocity``.
        fixed: See ``SplitVelocity``.
        scheduler: Scheduler of a few-step model.
        routes: The routes that samples of this batch take; their levels have equal sizes.
        route_of: Index of each sample's route.
        draws: Noise.
        last_level: The level whose result is returned; ``None``: the highest.
        keep_ends: Return the end points m_k too, for a loss that reads them.

    Returns:
        The result of the last level; the calls that a gradient of it reaches, lowest level first; and nothing, or with
        ``keep_ends`` the end points of the same levels. A gradient of the end points at exits after the first step
        reaches further down than one of the result, so there are then more calls.

    Raises:
        ValueError: The scheduler's solver is not "dmd".
    """
    if scheduler.solver != "dmd":
        raise ValueError(f"a rollout takes the steps of solver 'dmd'; the scheduler has {scheduler.solver!r}")
    solver, route_of = make_solver(scheduler), jnp.asarray(route_of)
    levels = routes[0].plans[: None if last_level is None else last_level + 1]
    state = begin_first_level(solver, draws.initial, len(routes[0].plans) - 1)
    visits: list[Visit] = []
    level_ends: list[LevelEnd] = []
    for level, plan in enumerate(levels):
        if plan.transition is not None:
            noise = draws.blocks[level - 1]
            state = begin_level(solver, state, noise, plan.transition, scheduler.gamma, jnp.float32)
        steps = [route.plans[level] for route in routes]
        exits = [route.exits[level] for route in routes]
        earlier, taken = [], []
        for k in range(max(exits)):
            rows = _rows(steps, [min(k, e) for e in exits])
            active = np.array([k < e for e in exits])
            arguments = velocity, solver, level, weights, fixed, state, rows, active, route_of
            state, end = _advance(*arguments)
            if keep_ends:
                earlier.append(end)
                taken.append(jnp.asarray(active)[route_of])
        rows, first = _rows(steps, exits), np.array([e == 0 for e in exits])
        visits.append(_visit(level, state.x, rows, first, route_of))
        # With sigma_(k+1) = 0 a step ends at the end point m_k.
        ends = dataclasses.replace(rows, scalars=rows.scalars * np.array([1, 0], np.float32))
        every = np.ones(len(routes), bool)
        state, _ = _advance(velocity, solver, level, weights, fixed, state, ends, every, route_of)
        if keep_ends:
            before = {"earlier": jnp.stack(earlier), "taken": jnp.stack(taken)} if earlier else {}
            level_ends.append(LevelEnd(last=solver.finish(state, jnp.float32), **before))
    taken_exits = [route.exits[: len(levels)] for route in routes]
    if keep_ends:
        lowest = min(next((level for level, e in enumerate(exits) if e), 0) for exits in taken_exits)
    else:
        lowest = lowest_reached(taken_exits)
    return solver.finish(state, jnp.float32), tuple(visits[lowest:]), tuple(level_ends[lowest:])


def lowest_reached(exits: Sequence[Sequence[int]]) -> int:
    """The lowest level that a gradient reaches on any of several routes: above it, one of them has exits 0 alone."""

    def of_route(route: Sequence[int]) -> int:
        return max((level for level, step in enumerate(route) if step > 0), default=0)

    return min(of_route(route) for route in exits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
    """One step of every route."""

    timesteps: Float[AnyArray, " routes"]
    scalars: Float[AnyArray, "routes 2"]


def _rows(plans: Sequence[LevelPlan], steps: Sequence[int]) -> _Rows:
    pairs = list(zip(plans, steps, strict=True))
    return _Rows(
        timesteps=np.stack([plan.timesteps[step] for plan, step in pairs]),
        scalars=np.stack([plan.step_scalars[step] for plan, step in pairs]),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    velocity: SplitVelocity[Any, Any],
    solver: Solver,
    level: int,
    weights: Any,
    fixed: Any,
    state: SolverState,
    rows: _Rows,
    active: Bool[AnyArray, " routes"],
    route_of: Int[Array, " B"],
) -> tuple[SolverState, Float[Array, "B T H W C"]]:
    """One step of the samples on active routes, the others keep their state; and the end points m_k of the step."""
    v = velocity(weights, fixed, state.x, jnp.asarray(rows.timesteps)[route_of], level).astype(jnp.float32)
    end = state.x - per_sample(jnp.asarray(rows.scalars)[route_of, 0]) * v
    step: Callable[..., SolverState] = jax.vmap(solver.step)
    new = step(state, v, jnp.asarray(rows.scalars)[route_of])
    moves = per_sample(jnp.asarray(active)[route_of])
    return jax.tree.map(lambda new, old: jnp.where(moves, new, old), new, state), end


@functools.partial(jax.jit, static_argnums=0)
def _visit(
    level: int,
    x: Float[Array, "B T H W C"],
    rows: _Rows,
    is_first: Bool[AnyArray, " routes"],
    route_of: Int[Array, " B"],
) -> Visit:
    return Visit(
        x=x,
        timestep=jnp.asarray(rows.timesteps)[route_of],
        sigma=jnp.asarray(rows.scalars)[route_of, 0],
        is_first=jnp.asarray(is_first)[route_of],
        level=level,
    )
