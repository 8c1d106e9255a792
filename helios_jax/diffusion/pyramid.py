"""The resolution pyramid: its time tables, the schedule of one level, and the step between levels.

Level l of L works at 2^(l-L+1) of the full height and width and owns the slice [r_l, r_(l+1)] of the
global noise table g_i = shift(0.999 (1 - i/1000)), i = 0..999 (arXiv 2603.04379; pyramid flow
matching, arXiv 2410.05954; values as diffusers 0.42.1 computes them). With gamma the anti-correlation
of the block noise and k = sqrt(1 + 1/gamma):

    (1)  raw_l   = g[floor(1000 r_l)]                                   noise where level l-1 stops
    (2)  end_l   = raw_(l+1), 0 for the last level
    (3)  alpha_l = 1 / (k raw_l + 1 - raw_l)                            signal kept by the transition
    (4)  beta_l  = alpha_l raw_l / sqrt(gamma)                          noise added by the transition
    (5)  start_l = 1 - alpha_l (1 - raw_l) for l > 0, raw_0 for l = 0   noise where level l begins

Nearest upsampling repeats the noise of level l-1 in every 2x2 block. Adding block noise b with

    (6)  Cov(b) = (1 + gamma) I - gamma 1 1^T         over the 4 elements of a block

makes it white again: alpha_l up(x) + beta_l b has noise level exactly start_l. With z white and
m its block mean, a closed form needs no factorisation of the covariance (singular at gamma = 1/3):

    (7)  b = sqrt(1 + gamma) (z - m) + sqrt(1 - 3 gamma) m

Time. Levels share [0, 1000) in proportion to their length start_l - end_l: level l spans the entries
floor(1000 rho_l) and floor(1000 rho_(l+1)) of 1000 g, rho the cumulative fractions. Inside a level the
local sigma runs from 0.999 to 0 between the level's own start and end points,

    (8)  x_start = start_l n + (1 - start_l) up(X_(l-1)),   x_end = end_l n + (1 - end_l) X_l

and the timestep is affine in it.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from helios_jax.config import SchedulerConfig, TransformerConfig, patch_tokens
from helios_jax.diffusion.flow import dynamic_shift_factor, dynamic_shift_mu, round_to, shift_sigmas
from helios_jax.typing import Array, DType, Float

SIGMA_MAX = 0.999
"""The noise level at which every schedule starts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One level of the pyramid, equations (1) to (5).

    Attributes:
        raw_start: Noise level at which the level below stops.
        start: Noise level of the level's start point.
        end: Noise level of the level's end point.
        alpha: Signal kept by the transition into the level; 1 on level 0, which has none.
        beta: Noise added by the transition; 0 on level 0.
        time_start: Timestep at the start point.
        time_end: Timestep at the end point; the table stops one entry short of it.
        num_train_timesteps: Entries of the tables.
    """

    raw_start: float
    start: float
    end: float
    alpha: float
    beta: float
    time_start: float
    time_end: float
    num_train_timesteps: int

    @property
    def sigmas(self) -> Float[np.ndarray, " steps"]:
        """Local sigmas of the level, float64, equal for all levels."""
        return np.linspace(SIGMA_MAX, 0, self.num_train_timesteps + 1)[:-1]

    @property
    def timesteps(self) -> Float[np.ndarray, " steps"]:
        """Timesteps that belong to ``sigmas``, float64."""
        return np.linspace(self.time_start, self.time_end, self.num_train_timesteps + 1)[:-1]


def pyramid_levels(config: SchedulerConfig) -> tuple[Level, ...]:
    """The levels of the pyramid, lowest resolution first (the tables of diffusers' ``HeliosScheduler``)."""
    size = config.num_train_timesteps
    # Written as diffusers does: floor() below and integer timesteps depend on the last bit.
    table = shift_sigmas(1 - np.linspace(1, 1 / size, size + 1), config.shift)[:0:-1]
    timesteps = table * size

    raw = np.append(table, 0.0)[[int(fraction * size) for fraction in config.level_range]]
    raw, end = raw[:-1], raw[1:]
    alpha = 1 / (math.sqrt(1 + 1 / config.gamma) * raw + (1 - raw))
    beta = alpha * raw / math.sqrt(config.gamma)
    alpha[0], beta[0] = 1.0, 0.0
    start = 1 - alpha * (1 - raw)

    lengths = start - end
    inner = (np.cumsum(lengths)[:-1] / lengths.sum() * size).astype(int)
    # With a static shift the first entries exceed the largest timestep that the network was trained on.
    time_start = np.minimum(timesteps[[0, *inner]], 999)
    time_end = timesteps[[*inner, -1]]
    columns = {
        "raw_start": raw,
        "start": start,
        "end": end,
        "alpha": alpha,
        "beta": beta,
        "time_start": time_start,
        "time_end": time_end,
    }
    return tuple(
        Level(num_train_timesteps=size, **{name: float(column[level]) for name, column in columns.items()})
        for level in range(config.num_levels)
    )


def transition(config: SchedulerConfig, level: int) -> tuple[float, float]:
    """(alpha, beta) of the step into ``level``, equations (3) and (4).

    Raises:
        ValueError: ``level`` has no level below it.
    """
    if not 0 < level < config.num_levels:
        raise ValueError(
            f"no transition into level {level}; there are transitions into levels 1..{config.num_levels - 1}"
        )
    entered = pyramid_levels(config)[level]
    return entered.alpha, entered.beta


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LevelSchedule:
    """The steps of one level.

    Attributes:
        timesteps: Timestep input of the network at each step, float64, in [0, 1000). Pyramid
            models take the integer part, single-stage models the value itself.
        sigmas: Local noise levels, float64, one more than there are steps; the last is 0.
    """

    timesteps: Float[np.ndarray, " steps"]
    sigmas: Float[np.ndarray, " steps+1"]


def check_steps(config: SchedulerConfig, steps: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the steps of every level: ``steps`` is an int for one level, a sequence for a pyramid.

    Raises:
        ValueError: The number of values does not fit the pyramid, or one is below 1.
    """
    levels = config.num_levels
    values = tuple(map(operator.index, steps)) if isinstance(steps, Sequence) else (operator.index(steps),)
    if len(values) != levels:
        needed = "one number" if levels == 1 else f"{levels} numbers, one per pyramid level"
        example = 50 if levels == 1 else (2 if config.solver == "dmd" else 20,) * levels
        raise ValueError(f"steps={steps!r} given; this model needs {needed}, for example steps={example}")
    if min(values) < 1:
        raise ValueError(f"steps={steps!r} given; every level needs at least 1 step")
    return values


def level_sizes(config: SchedulerConfig, height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Latent (height, width) of every level, lowest first, for the full latent size.

    Raises:
        ValueError: The full size cannot be halved often enough.
    """
    factor = 2 ** (config.num_levels - 1)
    if height % factor or width % factor:
        raise ValueError(f"latent size {height}x{width} must divide by {factor} for {config.num_levels} pyramid levels")
    return tuple((height >> down, width >> down) for down in reversed(range(config.num_levels)))


def level_tokens(
    config: SchedulerConfig, transformer: TransformerConfig, frames: int, height: int, width: int
) -> tuple[int, ...]:
    """Token counts from which each level's mu is computed, for a chunk of the full latent size.

    Released inference counts tokens before it upsamples, so a level above the first uses the count of the
    level below; with ``config.shift_after_upsampling`` it uses its own.
    """
    sizes = level_sizes(config, height, width)
    own = tuple(patch_tokens(transformer, frames, *size) for size in sizes)
    return own if config.shift_after_upsampling else (own[0], *own[:-1])


def level_schedule(
    config: SchedulerConfig,
    level: int,
    steps: int,
    *,
    num_tokens: int | None = None,
    mu: float | None = None,
    amplify: bool = False,
) -> LevelSchedule:
    """The sigmas and timesteps of one level (``set_timesteps`` of diffusers 0.42.1).

    A pyramid level takes ``steps`` points from 0.999 to the last entry of the level's sigma table and
    then 0; a single stage takes ``steps`` points from 0.999 towards 0, as the diffusers pipelines ask
    for. The DMD solver takes one point more and drops the smallest one before 0. A static shift
    acts on the pyramid's tables and leaves local sigmas alone.

    Args:
        config: The scheduler.
        level: Pyramid level, 0 for a single stage.
        steps: Network calls N on this level.
        num_tokens: Tokens from which the dynamic shift computes mu, see ``level_tokens``.
        mu: The shift parameter itself, instead of ``num_tokens``.
        amplify: Double the steps of a DMD level (first chunk of a distilled model). The other solvers
            ignore it, as diffusers does.

    Raises:
        ValueError: ``steps`` or ``level`` is out of range, or the dynamic shift lacks its argument.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} given for level {level}; at least 1 is needed")
    if not 0 <= level < config.num_levels:
        raise ValueError(f"level {level} given; the scheduler has levels 0..{config.num_levels - 1}")
    dmd = config.solver == "dmd"
    points = (2 * steps if amplify else steps) + 1 if dmd else steps

    if config.num_levels == 1:
        first, last = float(config.num_train_timesteps), 0.0
        sigmas = np.linspace(SIGMA_MAX, 0, points + 1)[:-1]
        timesteps = sigmas * first
    else:
        tables = pyramid_levels(config)[level]
        first, last = tables.timesteps[[0, -1]]
        sigmas = np.linspace(tables.sigmas[0], tables.sigmas[-1], points)
        timesteps = np.linspace(first, last, points)
    if dmd:
        sigmas, timesteps = sigmas[:-1], timesteps[:-1]

    if config.use_dynamic_shifting:
        if num_tokens is not None and mu is None:
            mu = dynamic_shift_mu(config, num_tokens)
        elif num_tokens is not None or mu is None:
            raise ValueError(f"dynamic shifting needs num_tokens (see level_tokens) or mu, got {num_tokens=} and {mu=}")
        sigmas = shift_sigmas(sigmas, dynamic_shift_factor(config, mu))
        timesteps = last + sigmas * (first - last)
    return LevelSchedule(timesteps=timesteps, sigmas=np.append(sigmas, 0.0))


def block_mean(x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C"]:
    """The mean of every 2x2 spatial block: one level down. H and W are even."""
    b, t, h, w, c = x.shape
    return x.reshape(b, t, h // 2, 2, w // 2, 2, c).mean((3, 5))


def upsample_nearest(x: Float[Array, "B T H W C"]) -> Float[Array, "B T 2*H 2*W C"]:
    """Repeats every latent pixel in a 2x2 block: one level up."""
    return jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)


def downsample_noise(noise: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C"]:
    """White noise one level down: block sum over 2, which keeps the variance at 1."""
    return 2 * block_mean(noise)


def block_noise(z: Float[Array, "B T H W C"], gamma: float) -> Float[Array, "B T H W C"]:
    """Block noise of covariance (6) from white noise ``z``, equation (7); gamma lies in (0, 1/3]."""
    mean = upsample_nearest(block_mean(z))
    # 1 - 3 gamma is a rounding error below 0 when a configuration stores 1/3 rounded up.
    return math.sqrt(1 + gamma) * (z - mean) + math.sqrt(max(1 - 3 * gamma, 0.0)) * mean


def renoise(
    latents: Float[Array, "B T H W C"],
    noise: Float[Array, "B T 2*H 2*W C"],
    alpha: float,
    beta: float,
    dtype: DType,
) -> Float[Array, "B T 2*H 2*W C"]:
    """The start point of the next level: alpha up(latents) + beta noise.

    Args:
        latents: The end point of the level below, in the dtype that ``Solver.finish`` returns.
        noise: Block noise at the size of the next level.
        alpha: Signal kept, see ``transition``.
        beta: Noise added, see ``transition``.
        dtype: Compute dtype of the transformer, to which diffusers rounds the noise and its product.

    Returns:
        An array of the dtype of ``latents``, to which the other product and the sum are rounded.
    """
    kept = round_to(alpha * upsample_nearest(latents).astype(jnp.float32), latents.dtype)
    added = round_to(beta * round_to(noise.astype(jnp.float32), dtype), dtype)
    return round_to(kept + added, latents.dtype).astype(latents.dtype)
