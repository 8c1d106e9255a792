"""One chunk: noise in, clean latents out, over the levels of the pyramid.

    noise [B,9,h,w,C] -- halve -- level 0 -- up + renoise -- level 1 -- up + renoise -- level 2 -- latents [B,9,h,w,C]

Each level is one compiled step program, dispatched once per network call with donated state; the schedule enters as
a row of scalars, so that neither the number of steps nor the chunk nor the prompt compiles anything anew; only
texts of more than 127 tokens have programs of their own (``needed_keys``). All functions here are pure: arrays in,
arrays out.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import HistoryConfig, SchedulerConfig, TransformerConfig
from helios_jax.context import History
from helios_jax.diffusion.guidance import Guidance
from helios_jax.diffusion.pyramid import (
    block_noise,
    downsample_noise,
    level_schedule,
    level_sizes,
    level_tokens,
    renoise,
    transition,
)
from helios_jax.diffusion.solvers import Solver, SolverState, make_solver
from helios_jax.models.blocks import TextContext
from helios_jax.models.network import Network
from helios_jax.models.rope import RopeTable
from helios_jax.models.transformer import Context, HeliosTransformer
from helios_jax.parallel.mesh import replicated_like
from helios_jax.sampling.noise import NoiseSource
from helios_jax.typing import AnyArray, Array, DType, Float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LevelPlan:
    """What the host knows about one level before sampling.

    Attributes:
        size: Latent (height, width).
        rows: The solver's scalars, one row per step.
        timesteps: What the network is told at each step.
        transition: (alpha, beta) of the step into this level; ``None`` for the first.
    """

    size: tuple[int, int]
    rows: Float[np.ndarray, "N K"]
    timesteps: Float[np.ndarray, " N"]
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
    """The levels of a chunk.

    Args:
        scheduler: Noise schedule and solver.
        transformer: Gives the patch, hence the token counts behind the dynamic shift.
        steps: Network calls per level.
        frames: Latent frames of a chunk.
        size: Full latent (height, width).
        integer_timesteps: The network sees floor(t), as in the published pyramid pipeline.
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
                rows=solver.coefficients(schedule),
                timesteps=timesteps.astype(np.float32),
                transition=transition(scheduler, level) if level else None,
            )
        )
    return tuple(plans)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StepInfo:
    """What a per-step callback is given.

    Attributes:
        chunk: Index of the chunk.
        level: Index of the level.
        step: Index of the step within the level, from 0.
        steps: Steps of the level.
        timestep: What the network was told.
        latents: The sample after the step. Its buffer is reused by the next step: copy what you keep.
    """

    chunk: int
    level: int
    step: int
    steps: int
    timestep: float
    latents: Float[Array, "B T H W C"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkSampler:
    """Samples chunks of one size.

    Attributes:
        transformer: The network.
        scheduler: Noise schedule and solver.
        guidance: How two predictions become one; ``None`` samples without guidance.
        scale: Guidance scale.
        history: Layout of the context.
    """

    transformer: Network[HeliosTransformer]
    scheduler: SchedulerConfig
    guidance: Guidance | None
    scale: float
    history: HistoryConfig

    @property
    def placement(self) -> jax.sharding.Sharding:
        """Where samples, noise and history live: whole, on every device of the network."""
        return replicated_like(self.transformer.params)

    def sample(
        self,
        chunk: int,
        plans: tuple[LevelPlan, ...],
        *,
        text: TextContext,
        ropes: tuple[Array, ...],
        history: History,
        noise: NoiseSource,
        on_step: Callable[[StepInfo], None],
    ) -> Float[Array, "B T H W C"]:
        """Samples chunk number ``chunk``.

        Args:
            chunk: Index of the chunk; names its draws.
            plans: From ``plan_chunk``.
            text: From ``project_text``; with guidance, prompts and then negative prompts along the batch.
            ropes: Rotary table of each level.
            history: What came before.
            noise: Where draws come from.
            on_step: Called after each step has been dispatched.

        Returns:
            Clean latents in model space, in the dtype that the solver ends in.
        """
        solver = make_solver(self.scheduler)
        dtype, placement = self.transformer.dtype, self.placement
        context = embed_history(self.transformer, history, self.history)
        batch, _, height, width, channels = history.frames.shape
        shape = (batch, self.history.chunk_frames, height, width, channels)
        draw = jax.device_put(noise.normal(f"chunk{chunk}/initial", shape), placement)
        state = begin_first_level(solver, draw, len(plans) - 1)
        for level, plan in enumerate(plans):
            if plan.transition is not None:
                shape = (batch, self.history.chunk_frames, *plan.size, channels)
                draw = jax.device_put(noise.normal(f"chunk{chunk}/block{level}", shape), placement)
                state = begin_level(solver, state, draw, plan.transition, self.scheduler.gamma, dtype)
            for step, row in enumerate(plan.rows):
                if self.guidance is not None and self.guidance.is_zero_init(level, step):
                    state = zero_step(solver, state, row, dtype)
                else:
                    state = denoise_step(
                        self.transformer,
                        solver,
                        self.guidance,
                        placement,
                        state,
                        text=text,
                        context=context,
                        rope=ropes[level],
                        timestep=plan.timesteps[step],
                        row=row,
                        scale=np.float32(self.scale),
                    )
                on_step(
                    StepInfo(
                        chunk=chunk,
                        level=level,
                        step=step,
                        steps=len(plan.rows),
                        timestep=float(plan.timesteps[step]),
                        latents=state.x,
                    )
                )
        return solver.finish(state, dtype)


@functools.partial(jax.jit, static_argnums=2)
def project_text(
    transformer: Network[HeliosTransformer], embeds: Float[AnyArray, "B S E"], num_keys: int | None = None
) -> TextContext:
    """Keys and values of the text for all blocks; once per prompt. ``num_keys`` is from ``needed_keys``, or all."""
    return transformer.module.text_context(jnp.asarray(embeds), num_keys)


@functools.partial(jax.jit, static_argnums=2)
def embed_history(transformer: Network[HeliosTransformer], history: History, config: HistoryConfig) -> Context:
    """History tokens; once per chunk."""
    return transformer.module.context(history.tiers(config))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def rope_table(
    transformer: Network[HeliosTransformer], config: HistoryConfig, full: tuple[int, int], current: tuple[int, int]
) -> RopeTable:
    """Rotary table of one level; once per size."""
    return transformer.module.rope(config, full, current, config.chunk_frames)


@functools.partial(jax.jit, static_argnums=(0, 2))
def begin_first_level(solver: Solver, noise: Float[AnyArray, "B T H W C"], halvings: int) -> SolverState:
    """The solver's state at the first level, from noise of the full size."""
    noise = jnp.asarray(noise)
    for _ in range(halvings):
        noise = downsample_noise(noise)
    return solver.init(noise)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def begin_level(
    solver: Solver,
    state: SolverState,
    z: Float[AnyArray, "B T H W C"],
    transition: tuple[float, float],
    gamma: float,
    dtype: DType,
) -> SolverState:
    """The solver's state at the next level: the last level's sample upsampled, with block noise made from ``z``."""
    noise = block_noise(jnp.asarray(z), gamma)
    return solver.init(renoise(solver.finish(state, dtype), noise, *transition, dtype))


@functools.partial(jax.jit, static_argnums=(1, 2, 3), donate_argnums=4)
def denoise_step(
    transformer: Network[HeliosTransformer],
    solver: Solver,
    guidance: Guidance | None,
    placement: jax.sharding.Sharding,
    state: SolverState,
    *,
    text: TextContext,
    context: Context,
    rope: RopeTable,
    timestep: Float[AnyArray, ""],
    row: Float[AnyArray, " K"],
    scale: Float[AnyArray, ""],
) -> SolverState:
    """One step of the solver with one network call; guidance runs both prompts as one batch.

    The state leaves as it came, in ``placement``: on a mesh the compiler would else spread it like the parameters,
    and the next step would not fit the program of this one.
    """
    model = transformer.module
    batch = state.x.shape[0]
    if guidance is None:
        velocity = model.denoise(state.x, jnp.broadcast_to(timestep, (batch,)), text=text, context=context, rope=rope)
    else:
        doubled = dataclasses.replace(context, tokens=jnp.concatenate([context.tokens] * 2))
        both = model.denoise(
            jnp.concatenate([state.x] * 2),
            jnp.broadcast_to(timestep, (2 * batch,)),
            text=text,
            context=doubled,
            rope=rope,
        )
        cond, uncond = jnp.split(both, 2)
        velocity = guidance(cond, uncond, jnp.asarray(scale))
    return jax.lax.with_sharding_constraint(solver.step(state, velocity, jnp.asarray(row)), placement)


@functools.partial(jax.jit, static_argnums=(0, 3), donate_argnums=1)
def zero_step(solver: Solver, state: SolverState, row: Float[AnyArray, " K"], dtype: DType) -> SolverState:
    """One step of the solver with velocity zero: zero-init skips the network."""
    return solver.step(state, jnp.zeros(state.x.shape, dtype), jnp.asarray(row))


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def remember(history: History, latents: Float[Array, "B T H W C"], anchor: bool) -> History:
    """Appends a finished chunk to the history; ``anchor`` makes its first frame the anchor."""
    history = history.push(latents)
    return history.with_anchor(latents[:, :1]) if anchor else history
