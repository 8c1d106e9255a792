"""The plan of a chunk: everything that the schedule decides, computed on the host before sampling."""

import dataclasses

import numpy as np

from helios_jax.config import SchedulerConfig, TransformerConfig
from helios_jax.diffusion.pyramid import level_schedule, level_sizes, level_tokens, transition
from helios_jax.diffusion.solvers import make_solver
from helios_jax.typing import Float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LevelPlan:
    """One level of the pyramid.

    Attributes:
        size: Latent (height, width).
        step_scalars: The solver's scalars, one row per step (``Solver.coefficients``).
        timesteps: Timestep input of the network at each step.
        transition: (alpha, beta) of the step into this level; ``None`` for the first.
    """

    size: tuple[int, int]
    step_scalars: Float[np.ndarray, "steps scalars"]
    timesteps: Float[np.ndarray, " steps"]
    transition: tuple[float, float] | None


def plan_chunk(
    scheduler: SchedulerConfig,
    transformer: TransformerConfig,
    *,
    steps: tuple[int, ...],
    frames: int,
    size: tuple[int, int],
    integer_timesteps: bool,
    amplify: bool = False,
) -> tuple[LevelPlan, ...]:
    """The levels of a chunk, lowest first.

    Args:
        scheduler: Noise schedule and solver.
        transformer: Its patch size gives the token counts that determine the dynamic shift.
        steps: Network calls per level.
        frames: Latent frames of a chunk.
        size: Full latent (height, width).
        integer_timesteps: The network gets floor(t), as in the published pyramid pipeline.
        amplify: Twice the steps, for the first chunk of a distilled model.
    """
    sizes = level_sizes(scheduler, *size)
    tokens = level_tokens(scheduler, transformer, frames, *size)
    solver = make_solver(scheduler)
    plans = []
    for level, count in enumerate(steps):
        schedule = level_schedule(scheduler, level, count, num_tokens=tokens[level], amplify=amplify)
        timesteps = np.floor(schedule.timesteps) if integer_timesteps else schedule.timesteps
        plans.append(
            LevelPlan(
                size=sizes[level],
                step_scalars=solver.coefficients(schedule),
                timesteps=timesteps.astype(np.float32),
                transition=transition(scheduler, level) if level else None,
            )
        )
    return tuple(plans)
