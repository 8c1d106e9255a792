"""Stage 3, initialisation without recorded trajectories: causal consistency distillation, on the pyramid.

Of a real chunk and its true past, level l gives the straight path from its start to its end point (``pyramid``,
equations 1 and 2 there). On a grid of noise levels s_0 > s_1 > ... > s_K = 0 that passes through the student's steps
(``distillation.grids``), with k uniform, s = s_k and r = s_(k+1),

    x_s  = (1 - s) end + s start                                                                  (1)
    u    = v_0(x_s, t_s, negative) + g (v_0(x_s, t_s, text) - v_0(x_s, t_s, negative))            (2)
    x_r  = x_s + (r - s) u                                                                        (3)
    loss = weight * mean of |f(x_s, s) - f'(x_r, r)|^2 / 2        f(x, s) = x - s v(x, t_s)       (4)

where v is the student, v_0 the teacher (the network that training starts from) with guidance g, and f' the end point of
the student's moving average, through which no gradient passes; f(x, 0) = x. The teacher makes one step of Euler's
method along its flow, and the student's end points before and after it are made equal. At the last step the target is
the teacher's own end point. Chained from there upwards, the end points become those of the teacher's trajectories,
which ``ode`` regresses from recordings.

Sources: consistency distillation, arXiv 2303.01469; for autoregressive video models with a clean past, arXiv
2605.15141. Its transfer to the pyramid, where a path ends at the level's end point and so in part in noise, is ours.

The network's timestep input is floor(t), as in sampling. The context is the true past: parts of it are dropped as in
stages 1 and 2, so that the student also learns chunks without any, and nothing is corrupted.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from helios_jax.config import SchedulerConfig, patch_tokens
from helios_jax.context import Tiers
from helios_jax.diffusion.flow import interpolate, predict_clean
from helios_jax.diffusion.guidance import ClassifierFree
from helios_jax.diffusion.pyramid import check_steps, level_sizes, pyramid_levels
from helios_jax.distillation.grids import merged_schedules
from helios_jax.models.transformer import Context, HeliosTransformer
from helios_jax.parallel.execution import Execution
from helios_jax.sampling.prompts import NEGATIVE_PROMPT
from helios_jax.training.batch import LatentBatch
from helios_jax.training.flops import NetworkCalls, history_tokens
from helios_jax.training.injection import ContextDrop, Injection, InjectionDraws
from helios_jax.training.methods import CONTEXT, NOISE, TIMESTEP, fold, mean_squares, per_sample
from helios_jax.training.methods.pyramid import level_paths
from helios_jax.training.metrics import Metrics
from helios_jax.training.networks import Networks
from helios_jax.training.state import Restore
from helios_jax.training.taught import Judges, Taught
from helios_jax.typing import Array, Float, Key
from helios_jax.user_input import finite_number


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyDraws:
    """Everything random about a batch.

    Attributes:
        noise: Noise of the highest level's path.
        u: U(0,1) that chooses k on each level.
        context: Drops of the context.
    """

    noise: Float[Array, "*B T H W C"]
    u: Float[Array, "*B levels"]
    context: InjectionDraws


Velocity = Callable[[Array, Array], Array]
"""(sample, timestep) -> velocity, fp32, of one network with its text and context."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency:
    """Trains ``networks.transformer`` on ``LatentBatch``; a ``Procedure``. The experiment needs an ``ema``.

    Attributes:
        context: How the context is computed from the batch.
        scheduler: The levels, and the grid that the student is sampled on.
        student_steps: Steps of the student on each level in a first chunk, where it takes most.
        teacher_steps: Steps of the teacher on each level; with the student's they form the grid.
        guidance_scale: g of (2); 1: none.
        negative_prompt: The negative prompt of (2).
        weight: Weight of the loss (4).
    """

    context: Injection = dataclasses.field(
        default_factory=lambda: Injection(drop=ContextDrop.published(), corruption=None, saturation=None)
    )
    scheduler: SchedulerConfig = dataclasses.field(default_factory=SchedulerConfig.distilled)
    student_steps: tuple[int, ...] = (4, 4, 4)
    teacher_steps: tuple[int, ...] = (20, 20, 20)
    guidance_scale: float = 5.0
    negative_prompt: str = NEGATIVE_PROMPT
    weight: float = 80.0

    def __post_init__(self) -> None:
        if self.scheduler.solver != "dmd":
            raise ValueError(f"method.scheduler has the solver {self.scheduler.solver!r}; a few-step student has 'dmd'")
        check_steps(self.scheduler, self.student_steps)
        check_steps(self.scheduler, self.teacher_steps)
        finite_number(self.guidance_scale, "method.guidance_scale", at_least=1)
        if not finite_number(self.weight, "method.weight", at_least=0):
            raise ValueError("method.weight=0 would train nothing; it must be above 0")
        self.context.layout.check_relative("method.context.layout")

    def start(self, experiment: Any, mesh: Mesh, restore: Restore | None) -> Taught:
        """See ``Procedure``."""
        return Taught(experiment, self, mesh, restore)

    def loss(
        self,
        networks: Networks,
        judges: Judges,
        batch: LatentBatch,
        keys: Key[Array, " B"],
        execution: Execution,
        first_key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """See ``Judged``."""
        return self.loss_from_draws(networks, judges, batch, self.draw(batch, keys, first_key), execution)

    def draw(self, batch: LatentBatch, keys: Key[Array, " B"], first_key: Key[Array, ""]) -> ConsistencyDraws:
        """All draws for a batch; only the shapes of the batch are used."""
        first_context, levels = fold(first_key, CONTEXT), self.scheduler.num_levels

        def sample(key: Key[Array, ""]) -> ConsistencyDraws:
            return ConsistencyDraws(
                noise=jax.random.normal(fold(key, NOISE), batch.target.shape[1:]),
                u=jax.random.uniform(fold(key, TIMESTEP), (levels,)),
                context=self.context.draw(fold(key, CONTEXT), batch.history.shape[1:], first_context),
            )

        return jax.vmap(sample)(keys)

    def loss_from_draws(
        self,
        networks: Networks,
        judges: Judges,
        batch: LatentBatch,
        draws: ConsistencyDraws,
        execution: Execution,
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation (4); the metrics "level0/mse", ... are mean squares without weight and 1/2."""
        clean = jnp.asarray(batch.target, jnp.float32)
        tiers = self.context.history(batch, draws.context).tiers(self.context.layout)
        student = self._velocity(networks, networks.text_embeds(batch.text), tiers, execution)
        teacher = self._guided(judges, batch, tiers, execution)
        average = self._velocity(judges.average, judges.average.text_embeds(batch.text), tiers, execution)
        grids = merged_schedules(
            self.scheduler,
            networks.transformer.config,
            student_steps=self.student_steps,
            teacher_steps=self.teacher_steps,
            frames=clean.shape[1],
            size=(clean.shape[2], clean.shape[3]),
        )
        errors: list[Array] = []
        for index, path in enumerate(level_paths(pyramid_levels(self.scheduler), clean, draws.noise)):
            schedule = grids[index].schedule
            count = len(schedule.timesteps)
            k = jnp.minimum(jnp.floor(draws.u[:, index] * count).astype(jnp.int32), count - 1)
            sigmas = jnp.asarray(schedule.sigmas, jnp.float32)
            timesteps = jnp.asarray(np.floor(schedule.timesteps), jnp.float32)
            s, r = per_sample(sigmas[k]), per_sample(sigmas[k + 1])
            x_s = interpolate(path.start, path.end, s)
            x_r = x_s + (r - s) * teacher(x_s, timesteps[k])
            # Where r = 0 the average's velocity counts for nothing, whatever the timestep.
            target = predict_clean(x_r, average(x_r, timesteps[jnp.minimum(k + 1, count - 1)]), r)
            reached = predict_clean(x_s, student(x_s, timesteps[k]), s)
            errors.append(mean_squares(reached - jax.lax.stop_gradient(target)))
        loss = self.weight * 0.5 * jnp.stack(errors).mean()
        return loss, {f"level{index}/mse": error.mean() for index, error in enumerate(errors)}

    def _guided(self, judges: Judges, batch: LatentBatch, tiers: Tiers, execution: Execution) -> Velocity:
        """The teacher's velocity u, equation (2)."""
        embeds = judges.teacher.text_embeds(batch.text)
        if judges.negative is None:
            return self._velocity(judges.teacher, embeds, tiers, execution)
        # Both prompts form one batch, so that every weight is read once.
        negative = jnp.broadcast_to(judges.negative, embeds.shape).astype(embeds.dtype)
        both = self._velocity(judges.teacher, jnp.concatenate([embeds, negative]), tiers, execution)

        def velocity(x: Array, timestep: Array) -> Array:
            cond, uncond = jnp.split(both(jnp.concatenate([x, x]), jnp.concatenate([timestep, timestep])), 2)
            return ClassifierFree()(cond, uncond, self.guidance_scale)

        return velocity

    def _velocity(
        self, networks: Networks, embeds: Float[Array, "B S E"], tiers: Tiers, execution: Execution
    ) -> Velocity:
        """A network with its text and context; the text's batch may be a multiple of the context's."""
        transformer: HeliosTransformer = networks.transformer
        layout, full = self.context.layout, tiers.short.shape[2:4]
        text, context = transformer.condition_embedder.text(embeds), transformer.context(tiers)
        copies = len(embeds) // len(context.tokens)
        context = Context(tokens=jnp.concatenate([context.tokens] * copies), modulation=context.modulation)

        def velocity(x: Array, timestep: Array) -> Array:
            rope = transformer.rope(layout, full, x.shape[2:4], x.shape[1])
            v = transformer.denoise(x, timestep, text=text, context=context, rope=rope, execution=execution)
            return v.astype(jnp.float32)

        return velocity

    def network_calls(self, networks: Networks, batch: LatentBatch) -> NetworkCalls:
        """The student's calls, one on each level, see ``Judged``."""
        config, (frames, height, width) = networks.transformer.config, batch.target.shape[1:4]
        sizes = level_sizes(self.scheduler, height, width)
        return NetworkCalls(
            current=tuple(patch_tokens(config, frames, *size) for size in sizes),
            history=history_tokens(config, self.context.layout, height, width),
            text=batch.text.length,
        )
