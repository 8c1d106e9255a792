"""Stage 2: flow matching on the levels of the pyramid.

With X_l the chunk halved to level l by 2x2 means, n_l white noise halved likewise to variance 1, and the levels'
start and end noise (``diffusion.pyramid``, equations 2 and 5 there):

    start_0 = n_0
    start_l = S_l n_l + (1 - S_l) up(X_(l-1))                     where renoising leaves the sampler    (1)
    end_l   = e_l n_l + (1 - e_l) X_l                             where its last step arrives           (2)
    x_s     = (1 - s) end_l + s start_l                           s, t from the level's table           (3)
    loss    = mean of |v(x_s, t, text, context) - (start_l - end_l)|^2                                  (4)

In sampling, ``diffusion.pyramid.renoise`` gives the start point (1), and the solver's steps lead along (3) to (2).

A chunk gives ``ratios[l]`` samples of level l, all with the same noise, and samples of all sizes have equal weight.
The published training packs the samples of a chunk into one sequence with block-diagonal attention, over copies of one
context; here the context is embedded once, and each level is one call of the network. The maths is the same.

The network's timestep input is t, unrounded as in the published training; published pyramid sampling truncates it to an
integer, as ``integer_timesteps`` does here. Everything except the network is computed in fp32 from float64 tables,
where the published training rounds start and end points to bf16.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import SchedulerConfig, patch_tokens
from helios_jax.diffusion.flow import interpolate, velocity
from helios_jax.diffusion.pyramid import (
    Level,
    block_mean,
    downsample_noise,
    level_sizes,
    pyramid_levels,
    upsample_nearest,
)
from helios_jax.models.transformer import Context
from helios_jax.parallel.execution import Execution
from helios_jax.training.batch import LatentBatch
from helios_jax.training.corruption import Corruption, CorruptionDraws, Segments, corrupt
from helios_jax.training.flops import NetworkCalls, history_tokens
from helios_jax.training.injection import Injection, InjectionDraws
from helios_jax.training.methods import (
    CONTEXT,
    INPUT,
    NOISE,
    TIMESTEP,
    fold,
    mean_squares,
    per_sample,
)
from helios_jax.training.metrics import Metrics
from helios_jax.training.networks import Networks
from helios_jax.training.timesteps import table_entries
from helios_jax.typing import Array, Float, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelPath:
    """The straight path that one level is trained on.

    Attributes:
        start: Equation (1).
        end: Equation (2).
    """

    start: Float[Array, "B T H W C"]
    end: Float[Array, "B T H W C"]


def level_paths(
    levels: Sequence[Level], clean: Float[Array, "B T H W C"], noise: Float[Array, "B T H W C"]
) -> tuple[LevelPath, ...]:
    """The path of every level, lowest first, from a clean chunk and noise of the full size."""
    chunks, noises = [clean], [noise]
    for _ in levels[1:]:
        chunks.insert(0, block_mean(chunks[0]))
        noises.insert(0, downsample_noise(noises[0]))
    paths = []
    for index, level in enumerate(levels):
        start = noises[index]
        if index > 0:
            start = interpolate(noises[index], upsample_nearest(chunks[index - 1]), level.start)
        paths.append(LevelPath(start=start, end=interpolate(noises[index], chunks[index], level.end)))
    return tuple(paths)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PyramidDraws:
    """Everything random about a batch.

    Attributes:
        noise: n of the highest level.
        u: U(0,1) that determines the table entry of each sample of the chunk, samples of the lowest level first.
        context: Drops and corruptions of the context.
        input: Corruption of each level's end point; empty if there is none.
    """

    noise: Float[Array, "*B T H W C"]
    u: Float[Array, "*B samples"]
    context: InjectionDraws
    input: tuple[CorruptionDraws, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pyramid:
    """Trains ``networks.transformer`` (and, from tokens, ``networks.text_encoder``) on ``LatentBatch``.

    Attributes:
        context: How the context is computed from the batch.
        scheduler: The levels.
        ratios: Samples per level, lowest first; published: (1, 2, 1), then (1, 1, 1).
        reduction: "mean" over samples; "sum" over the samples of a chunk and mean over the batch, the scale of the
            published training without packing.
        integer_timesteps: The network's timestep input is floor(t), as in sampling; off: t, as published.
        input_corruption: Damages the end points, and with them the target; ``None``: no damage, as published.
    """

    context: Injection = dataclasses.field(default_factory=Injection)
    scheduler: SchedulerConfig = dataclasses.field(default_factory=SchedulerConfig.mid)
    ratios: tuple[int, ...] = (1, 2, 1)
    reduction: Literal["mean", "sum"] = "mean"
    integer_timesteps: bool = False
    input_corruption: Corruption | None = None

    def __post_init__(self) -> None:
        levels = self.scheduler.num_levels
        if len(self.ratios) != levels or min(self.ratios) < 1:
            raise ValueError(f"ratios={self.ratios} given; {levels} levels need {levels} numbers of at least 1")
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction {self.reduction!r} must be 'mean' or 'sum'")

    def loss(
        self, networks: Networks, batch: LatentBatch, keys: Key[Array, " B"], execution: Execution
    ) -> tuple[Float[Array, ""], Metrics]:
        """See ``Method``."""
        return self.microbatch_loss(networks, batch, keys, execution, keys[0])

    def microbatch_loss(
        self,
        networks: Networks,
        batch: LatentBatch,
        keys: Key[Array, " B"],
        execution: Execution,
        first_key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """See ``SharesDecisions``."""
        return self.loss_from_draws(networks, batch, self.draw(networks, batch, keys, first_key), execution)

    def draw(
        self,
        networks: Networks,
        batch: LatentBatch,
        keys: Key[Array, " B"],
        first_key: Key[Array, ""] | None = None,
    ) -> PyramidDraws:
        """All draws for a batch; only the shapes of the batch are used.

        Args:
            networks: Not used.
            batch: The batch.
            keys: One key per sample.
            first_key: The key of the first sample of the step, for ``Injection.decide``; ``None``: ``keys[0]``.
        """
        first_context = fold(keys[0] if first_key is None else first_key, CONTEXT)
        frames, height, width, channels = chunk = batch.target.shape[1:]
        past, sizes = batch.history.shape[1:], level_sizes(self.scheduler, height, width)

        def sample(key: Key[Array, ""]) -> PyramidDraws:
            inputs = ()
            if self.input_corruption is not None:
                inputs = tuple(
                    self.input_corruption.draw(fold(key, INPUT, level), (frames, *size, channels))
                    for level, size in enumerate(sizes)
                )
            return PyramidDraws(
                noise=jax.random.normal(fold(key, NOISE), chunk),
                u=jax.random.uniform(fold(key, TIMESTEP), (sum(self.ratios),)),
                context=self.context.draw(fold(key, CONTEXT), past, first_context),
                input=inputs,
            )

        return jax.vmap(sample)(keys)

    def loss_from_draws(
        self, networks: Networks, batch: LatentBatch, draws: PyramidDraws, execution: Execution
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation (4); the metrics "level0/mse", ... are its parts."""
        transformer, layout = networks.transformer, self.context.layout
        clean = jnp.asarray(batch.target, jnp.float32)
        history = self.context.history(batch, draws.context)
        text = transformer.condition_embedder.text(networks.text_embeds(batch.text))
        context, chunk = transformer.context(history.tiers(layout)), self.context.chunks(batch, draws.context)

        errors: list[Array] = []
        levels = pyramid_levels(self.scheduler)
        for index, path in enumerate(level_paths(levels, clean, draws.noise)):
            level, copies, first = levels[index], self.ratios[index], sum(self.ratios[:index])
            start, end = path.start, path.end
            if self.input_corruption is not None:
                end = corrupt(end, draws.input[index], self.input_corruption, Segments.whole(end.shape[1]))
            # Copies of a chunk are adjacent in the batch, and therefore stay on the device that holds the chunk.
            start, end = jnp.repeat(start, copies, 0), jnp.repeat(end, copies, 0)
            numbers = jnp.repeat(chunk, copies) if jnp.ndim(chunk) else chunk
            u = draws.u[:, first : first + copies].reshape(-1)
            timesteps = np.floor(level.timesteps) if self.integer_timesteps else level.timesteps
            predicted = transformer.denoise(
                interpolate(start, end, per_sample(table_entries(u, level.sigmas))),
                table_entries(u, timesteps),
                text=jnp.repeat(text, copies, 0),
                context=Context(tokens=jnp.repeat(context.tokens, copies, 0), modulation=context.modulation),
                rope=transformer.rope(layout, history.frames.shape[2:4], end.shape[2:4], end.shape[1], numbers),
                execution=execution,
            )
            errors.append(mean_squares(predicted - velocity(start, end)))

        loss = jnp.concatenate(errors).mean()
        if self.reduction == "sum":
            loss = loss * sum(self.ratios)
        return loss, {f"level{index}/mse": error.mean() for index, error in enumerate(errors)}

    def network_calls(self, networks: Networks, batch: LatentBatch) -> NetworkCalls:
        """``ratios[l]`` calls of level l, see ``CountsCalls``: samples that share a call are counted separately."""
        config, (frames, height, width) = networks.transformer.config, batch.target.shape[1:4]
        sizes = level_sizes(self.scheduler, height, width)
        return NetworkCalls(
            current=tuple(
                patch_tokens(config, frames, *size)
                for size, ratio in zip(sizes, self.ratios, strict=True)
                for _ in range(ratio)
            ),
            history=history_tokens(config, self.context.layout, height, width),
            text=batch.text.length,
        )
