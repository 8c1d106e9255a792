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

from helios_jax.config import SchedulerConfig, TransformerConfig
from helios_jax.diffusion.flow import interpolate, predict_clean
from helios_jax.diffusion.pyramid import (
    LevelSchedule,
    block_noise,
    check_steps,
    downsample_noise,
    level_schedule,
    level_tokens,
    renoise,
    transition,
)
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


def rollout_schedules(
    scheduler: SchedulerConfig,
    transformer: TransformerConfig,
    *,
    steps: Sequence[int],
    frames: int,
    size: tuple[int, int],
    amplify: bool = False,
) -> tuple[LevelSchedule, ...]:
    """The steps of every level.

    The published training shifts a level by its own number of tokens, released sampling by that of the level below:
    see ``SchedulerConfig.shift_after_upsampling``.

    Args:
        scheduler: That of a few-step model.
        transformer: Gives the patch, hence the tokens behind the dynamic shift.
        steps: N of each level.
        frames: Latent frames of the chunk.
        size: Its full latent (height, width).
        amplify: Twice the steps, for chunks without context.

    Raises:
        ValueError: The scheduler's solver is not "dmd", or steps or size do not fit the levels.
    """
    if scheduler.solver != "dmd":
        raise ValueError(f"a rollout takes the steps of solver 'dmd'; the scheduler has {scheduler.solver!r}")
    steps = check_steps(scheduler, steps)
    tokens = level_tokens(scheduler, transformer, frames, *size)
    return tuple(
        level_schedule(scheduler, level, count, num_tokens=tokens[level], amplify=amplify)
        for level, count in enumerate(steps)
    )


def draw_exits(seed: Sequence[int], schedules: Sequence[LevelSchedule]) -> tuple[int, ...]:
    """Exits of all levels. Equal seeds, such as (seed of the run, step), give equal exits in every process."""
    steps = [len(schedule.timesteps) for schedule in schedules]
    return tuple(map(int, np.random.default_rng(list(seed)).integers(steps)))


def lowest_trained(exits: Sequence[int]) -> int:
    """The lowest level that a gradient reaches, by (4)."""
    late = [level for level, step in enumerate(exits) if step > 0]
    return max(late, default=0)


def rollout[M](
    velocity: Velocity[M],
    network: M,
    scheduler: SchedulerConfig,
    schedules: Sequence[LevelSchedule],
    draws: RolloutDraws,
    exits: Int[AnyArray, " L"],
    lowest: int,
) -> Float[Array, "B T H W C"]:
    """A chunk in fp32, differentiable with respect to ``network`` by (4).

    Args:
        velocity: Calls the network.
        network: Its parameters.
        scheduler: Transitions and the block noise's gamma.
        schedules: From ``rollout_schedules``.
        draws: Noise.
        exits: From ``draw_exits``. May be traced.
        lowest: ``lowest_trained`` of the exits. Static: above it, levels end at their first step.
    """
    frozen = jax.lax.stop_gradient(network)
    x = draws.initial
    for _ in schedules[1:]:
        x = downsample_noise(x)
    for level, schedule in enumerate(schedules):
        if level > 0:
            noise = block_noise(draws.blocks[level - 1], scheduler.gamma)
            x = renoise(x, noise, *transition(scheduler, level), jnp.float32)
        exit_step = exits[level] if level <= lowest else 0
        if level <= lowest:
            x = _before_exit(velocity, frozen, schedule, level, x, exit_step)
        x = _end_point(velocity, network if level >= lowest else frozen, schedule, level, x, exit_step)
    return x


def _before_exit[M](
    velocity: Velocity[M],
    frozen: M,
    schedule: LevelSchedule,
    level: int,
    start: Float[Array, "B T H W C"],
    exit_step: Int[AnyArray, ""] | int,
) -> Float[Array, "B T H W C"]:
    """x at the exit, by (2) and (3), without gradients."""
    start = jax.lax.stop_gradient(start)
    sigmas = jnp.asarray(schedule.sigmas, jnp.float32)

    def step(k: Int[Array, ""], x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        return interpolate(start, _end_point(velocity, frozen, schedule, level, x, k), sigmas[k + 1])

    return jax.lax.fori_loop(0, exit_step, step, start)


def _end_point[M](
    velocity: Velocity[M],
    network: M,
    schedule: LevelSchedule,
    level: int,
    x: Float[Array, "B T H W C"],
    step: Int[AnyArray, ""] | int,
) -> Float[Array, "B T H W C"]:
    """Equation (2)."""
    sigma, timestep = (jnp.asarray(table, jnp.float32)[step] for table in (schedule.sigmas, schedule.timesteps))
    v = velocity(network, x, jnp.broadcast_to(timestep, x.shape[:1]), level)
    return predict_clean(x, v.astype(jnp.float32), sigma)
