"""One chunk: noise in, clean latents out, over the levels of the pyramid.

    noise [B,9,h,w,C] -- halve -- level 0 -- up + renoise -- level 1 -- up + renoise -- level 2 -- latents [B,9,h,w,C]

Each level is one compiled step program, dispatched once per network call with a donated state. The schedule is passed
as scalars for each step, so another number of steps, chunk or prompt compiles nothing new; only texts of
more than 127 tokens have their own programs (``needed_keys``). The functions below the sampler are pure:
arrays in, arrays out.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import HistoryConfig, SchedulerConfig
from helios_jax.context import History
from helios_jax.diffusion.guidance import Guidance
from helios_jax.diffusion.pyramid import block_noise, downsample_noise, renoise
from helios_jax.diffusion.solvers import Solver, SolverState, make_solver
from helios_jax.models.blocks import TextContext
from helios_jax.models.network import Network
from helios_jax.models.rope import RopeTable
from helios_jax.models.transformer import Context, HeliosTransformer
from helios_jax.parallel.mesh import replicated_like
from helios_jax.sampling.brief import brief_fields
from helios_jax.sampling.finite import Verdict, all_finite
from helios_jax.sampling.noise import NoiseSource
from helios_jax.sampling.plan import LevelPlan
from helios_jax.typing import AnyArray, Array, DType, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StepInfo:
    """Argument of a step callback.

    Attributes:
        chunk: Index of the chunk.
        level: Index of the level.
        step: Index of the step within the level, from 0.
        steps: Steps of the level.
        timestep: Timestep input of the network.
        latents: The sample after the step. Its buffer is reused by the next step: copy it to keep it.
    """

    chunk: int
    level: int
    step: int
    steps: int
    timestep: float
    latents: Float[Array, "B T H W C"]

    __repr__ = brief_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkSampler:
    """Samples chunks of one size.

    Attributes:
        transformer: The network.
        scheduler: Noise schedule and solver.
        guidance: Combines the predictions for both prompts; ``None`` samples without guidance.
        scale: Guidance scale.
        history_config: Layout of the context.
    """

    transformer: Network[HeliosTransformer]
    scheduler: SchedulerConfig
    guidance: Guidance | None
    scale: float
    history_config: HistoryConfig

    @property
    def placement(self) -> jax.sharding.Sharding:
        """The sharding of samples, noise and history: a full copy on every device of the network."""
        # All inputs of a step program are committed to this placement beforehand. A program's output is committed, a
        # fresh array is not, and JAX compiles one program for each: otherwise the first step would compile twice.
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
        on_level: Callable[[int, Array], None] = lambda level, start: None,
    ) -> tuple[Float[Array, "B T H W C"], list[Verdict]]:
        """Samples chunk number ``chunk``.

        Args:
            chunk: Index of the chunk; part of the names of its draws.
            plans: From ``plan_chunk``.
            text: From ``project_text``; with guidance, prompts and then negative prompts along the batch.
            ropes: Rotary table of each level.
            history: The context.
            noise: Source of all draws.
            on_step: Called after each step has been dispatched.
            on_level: Called before the first step of each level with its number and the sample that it starts from,
                whose buffer the first step reuses.

        Returns:
            Clean latents in model space, in the dtype that ``Solver.finish`` returns, and for each level whether its
            last sample is finite, on the device.

        Every draw is named after the chunk, and block noise after the level it enters. A chunk that is sampled again
        after an interruption therefore gets the same noise, and a test can replay the draws of another implementation.
        """
        solver = make_solver(self.scheduler)
        dtype, placement = self.transformer.dtype, self.placement
        context = embed_history(self.transformer, history, self.history_config)
        batch, _, height, width, channels = history.frames.shape
        frames = self.history_config.chunk_frames
        shape = (batch, frames, height, width, channels)
        draw = jax.device_put(noise.normal(f"chunk{chunk}/initial", shape), placement)
        state = begin_first_level(solver, draw, len(plans) - 1)
        verdicts: list[Verdict] = []
        for level, plan in enumerate(plans):
            if plan.transition is not None:
                shape = (batch, frames, *plan.size, channels)
                draw = jax.device_put(noise.normal(f"chunk{chunk}/block{level}", shape), placement)
                state = begin_level(solver, state, draw, plan.transition, self.scheduler.gamma, dtype)
            on_level(level, state.x)
            for step, scalars in enumerate(plan.step_scalars):
                # CFG-Zero* starts with steps of velocity zero. The host decides this, so the network is not called at
                # all; a select within ``denoise_step`` would compute the velocity and discard it.
                if self.guidance is not None and self.guidance.is_zero_init(level, step):
                    state = zero_step(solver, state, scalars, dtype)
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
                        scalars=scalars,
                        scale=np.float32(self.scale),  # traced: another scale compiles nothing
                    )
                on_step(
                    StepInfo(
                        chunk=chunk,
                        level=level,
                        step=step,
                        steps=len(plan.step_scalars),
                        timestep=float(plan.timesteps[step]),
                        latents=state.x,
                    )
                )
            verdicts.append((level, all_finite(state.x)))
        return solver.finish(state, dtype), verdicts


@functools.partial(jax.jit, static_argnums=2)
def project_text(
    transformer: Network[HeliosTransformer], embeds: Float[AnyArray, "B S E"], num_keys: int | None = None
) -> TextContext:
    """Keys and values of the text for all blocks, computed once per prompt.

    ``num_keys`` comes from ``needed_keys``; ``None`` keeps a key for every token.
    """
    return transformer.module.text_context(jnp.asarray(embeds), num_keys)


@functools.partial(jax.jit, static_argnums=2)
def embed_history(transformer: Network[HeliosTransformer], history: History, config: HistoryConfig) -> Context:
    """History tokens, computed once per chunk."""
    return transformer.module.context(history.tiers(config))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def rope_table(
    transformer: Network[HeliosTransformer],
    config: HistoryConfig,
    full: tuple[int, int],
    current: tuple[int, int],
    chunk: int | Int[AnyArray, ""] = 0,
) -> RopeTable:
    """Rotary table of one level, computed once per size; of absolute positions, once per chunk."""
    return transformer.module.rope(config, full, current, config.chunk_frames, jnp.asarray(chunk))


@functools.partial(jax.jit, static_argnums=(0, 2))
def begin_first_level(solver: Solver, noise: Float[AnyArray, "B T H W C"], halvings: int) -> SolverState:
    """The solver's state at the first level, from noise of the full size."""
    noise = jnp.asarray(noise)
    for _ in range(halvings):
        noise = downsample_noise(noise)
    # The state is donated to every step. ``init`` copies: the noise source may keep its arrays for a later call.
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
    """The solver's state at the next level: the last level's sample upsampled, plus block noise.

    Args:
        solver: The solver.
        state: Its state after the last step of the level below.
        z: White noise of the next level's size, from which the block noise is computed.
        transition: (alpha, beta), see ``diffusion.pyramid.transition``.
        gamma: Correlation of the block noise.
        dtype: Dtype of the velocities.
    """
    # Not donated: the next level is four times as large, so no buffer could be reused.
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
    scalars: Float[AnyArray, " scalars"],
    scale: Float[AnyArray, ""],
) -> SolverState:
    """One step of the solver with one network call.

    Args:
        transformer: The network.
        solver: The solver.
        guidance: Combines the predictions for both prompts; ``None``: there is one prompt.
        placement: Sharding of the result.
        state: The solver's state; donated.
        text: From ``project_text``; with guidance, prompts and then negative prompts along the batch.
        context: History tokens of the samples.
        rope: Rotary table of the level.
        timestep: Timestep input of the network.
        scalars: The step's row of ``LevelPlan.step_scalars``.
        scale: Guidance scale.
    """
    # The state is donated because each step replaces it: x and the solver's memory are updated in their own buffers.
    model = transformer.module
    batch = state.x.shape[0]
    if guidance is None:
        velocity = model.denoise(state.x, jnp.broadcast_to(timestep, (batch,)), text=text, context=context, rope=rope)
    else:
        # Both prompts form one batch, so every weight is read once. The history is the same for both.
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
    # On a mesh the compiler would otherwise shard the result like the parameters, and the next step would compile again
    # for an input with another sharding.
    return jax.lax.with_sharding_constraint(solver.step(state, velocity, jnp.asarray(scalars)), placement)


@functools.partial(jax.jit, static_argnums=(0, 3), donate_argnums=1)
def zero_step(solver: Solver, state: SolverState, scalars: Float[AnyArray, " scalars"], dtype: DType) -> SolverState:
    """One step of the solver with velocity zero, without the network."""
    # The solver still takes its step: UniPC keeps this prediction, m = x, for its later orders.
    return solver.step(state, jnp.zeros(state.x.shape, dtype), jnp.asarray(scalars))


@functools.partial(jax.jit, static_argnums=2)
def remember(history: History, latents: Float[Array, "B T H W C"], anchor: bool) -> History:
    """Appends a finished chunk to the history; ``anchor`` makes its first frame the anchor."""
    # Not donated: the history before a chunk is what a stream is resumed from until the chunk has been taken.
    history = history.push(latents)
    return history.with_anchor(latents[:, :1]) if anchor else history
