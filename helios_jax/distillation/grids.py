"""Grids of a teacher that pass through every step of its student.

A student takes N steps on a level, from the noise levels s_1 > ... > s_N of the schedule that it is sampled with; its
teacher takes M more accurate ones, t_1 > ... > t_M. The teacher follows

    t_1 ... t_M together with s_1 ... s_N, in descending order, each noise level once                      (1)

so that its trajectory has a point at every step of the student (arXiv 2603.04379, whose recording merges both grids
before it applies the dynamic shift; the shift acts on each point alone, so the order makes no difference).

The shift depends on a number of tokens. Released sampling counts those of the level below, published training those of
the level itself (``SchedulerConfig.shift_after_upsampling``). The default here is the grid that will be sampled.
"""

import dataclasses

import numpy as np

from helios_jax.config import SchedulerConfig, TransformerConfig
from helios_jax.diffusion.pyramid import LevelSchedule, level_schedule, level_tokens
from helios_jax.typing import Float, Int

_SAME = 1e-6
"""Noise levels nearer than this count as one. Steps of a schedule differ by at least 1e-3."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MergedSchedule:
    """The grid (1) of one level.

    Attributes:
        schedule: All steps.
        student: Places of the student's steps among them.
    """

    schedule: LevelSchedule
    student: Int[np.ndarray, " points"]

    @property
    def timesteps(self) -> Float[np.ndarray, " points"]:
        """Timesteps at the student's steps, float64, not rounded."""
        return self.schedule.timesteps[self.student]

    @property
    def sigmas(self) -> Float[np.ndarray, " points"]:
        """Noise levels at the student's steps, float64, without the final 0."""
        return self.schedule.sigmas[self.student]


def merged_schedule(
    scheduler: SchedulerConfig, level: int, *, student_steps: int, teacher_steps: int, num_tokens: int
) -> MergedSchedule:
    """The grid (1) of a level.

    Args:
        scheduler: Scheduler of the student; its solver must be "dmd".
        level: Level of the pyramid.
        student_steps: N.
        teacher_steps: M.
        num_tokens: Tokens from which the dynamic shift is computed, see ``level_tokens``.

    Raises:
        ValueError: The scheduler is not that of a few-step model, or a number is out of range.
    """
    if scheduler.solver != "dmd":
        raise ValueError(f"the student's solver must be 'dmd'; the scheduler has {scheduler.solver!r}")
    tokens = num_tokens if scheduler.use_dynamic_shifting else None
    student = level_schedule(scheduler, level, student_steps, num_tokens=tokens)
    teacher = level_schedule(dataclasses.replace(scheduler, solver="unipc"), level, teacher_steps, num_tokens=tokens)
    # Where both have a step, the student's values are kept: they are those that it will be sampled with.
    new = np.abs(teacher.sigmas[:-1, None] - student.sigmas[:-1]).min(1) > _SAME
    sigmas = np.concatenate([student.sigmas[:-1], teacher.sigmas[:-1][new]])
    timesteps = np.concatenate([student.timesteps, teacher.timesteps[new]])
    order = np.argsort(-sigmas)
    places = np.flatnonzero(order < student_steps)
    schedule = LevelSchedule(timesteps=timesteps[order], sigmas=np.append(sigmas[order], 0.0))
    return MergedSchedule(schedule=schedule, student=places)


def merged_schedules(
    scheduler: SchedulerConfig,
    transformer: TransformerConfig,
    *,
    student_steps: tuple[int, ...],
    teacher_steps: tuple[int, ...],
    frames: int,
    size: tuple[int, int],
) -> tuple[MergedSchedule, ...]:
    """The grids of all levels, lowest first.

    Args:
        scheduler: Scheduler of the student.
        transformer: Its patch size gives the numbers of tokens.
        student_steps: Steps of the student on each level.
        teacher_steps: Steps of the teacher on each level.
        frames: Latent frames of a chunk.
        size: Full latent (height, width).
    """
    tokens = level_tokens(scheduler, transformer, frames, *size)
    return tuple(
        merged_schedule(scheduler, level, student_steps=few, teacher_steps=many, num_tokens=tokens[level])
        for level, (few, many) in enumerate(zip(student_steps, teacher_steps, strict=True))
    )
