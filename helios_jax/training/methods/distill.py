"""Stage 3: what the generator and the critic compute on one window of a clip. Pure functions of networks and draws.

A ``Scene`` is everything that a step knows about a window before any network samples a chunk: the contexts, the
generator's with colour shifts and the scores' without, the texts, and the noise. From it follow the network calls of
the rollout (``WalkCall``, ``ExitCall``) and of the scores (``scores_of``), the noise levels of the scores (``levels``)
and the critic's loss:

    generator   x = walk(...);  cotangent in x by ``distillation.scores``;  pulled back by ``pull_back.pull_back``
    critic      x = walk(...);  loss by ``distillation.dmd.critic_loss``

(arXiv 2603.04379, stage 3, with pure teacher forcing: contexts are real chunks. With ``own`` contexts, see
``training.distiller``.)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.config import HistoryConfig, SchedulerConfig, patch_tokens
from helios_jax.context import Tiers
from helios_jax.diffusion.pyramid import level_sizes
from helios_jax.distillation.dmd import ScoreLevels
from helios_jax.distillation.rollout import RolloutDraws
from helios_jax.distillation.scores import NoiseLevel, Scores
from helios_jax.models.blocks import TextContext
from helios_jax.models.transformer import Context, HeliosTransformer
from helios_jax.parallel.execution import Execution
from helios_jax.training.batch import LatentBatch
from helios_jax.training.injection import Contexts, Injection
from helios_jax.training.methods import CONTEXT, NOISE, fold
from helios_jax.training.networks import Networks
from helios_jax.training.params import Params, unflatten
from helios_jax.training.timesteps import training_shift_factor
from helios_jax.typing import AnyArray, Array, Float, Int, Key

SCORE, CROP = 4, 5
"""Uses of a sample's key, in addition to those of ``training.methods``."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A window of a clip, ready for a rollout.

    Attributes:
        contexts: Contexts of the generator (saturated) and of the scores (plain).
        rollout: Noise of the rollout.
        generator_text: Text embeddings of the generator's text encoder.
        score_text: Text embeddings of the scores' text encoder; the same without encoders.
        negative: Embeddings of the negative prompt.
    """

    contexts: Contexts
    rollout: RolloutDraws
    generator_text: Float[Array, "B S E"]
    score_text: Float[Array, "B S E"]
    negative: Float[Array, "B S E"]


def rollout_draws(
    key: Key[Array, ""], scheduler: SchedulerConfig, shape: Sequence[int], section: int | Int[AnyArray, ""] = 0
) -> RolloutDraws:
    """The noise of one sample's rollout.

    Args:
        key: The sample's key.
        scheduler: The levels.
        shape: Shape [T, H, W, C] of the chunk.
        section: Number of the chunk in the rollout.
    """
    frames, height, width, channels = shape
    sizes = level_sizes(scheduler, height, width)
    return RolloutDraws(
        initial=jax.random.normal(fold(key, NOISE, section, 0), (frames, height, width, channels)),
        blocks=tuple(
            jax.random.normal(fold(key, NOISE, section, level), (frames, *size, channels))
            for level, size in enumerate(sizes[1:], 1)
        ),
    )


def make_scene(
    generator: Networks,
    score: Networks,
    negative: Float[Array, "1 S E"],
    batch: LatentBatch,
    keys: Key[Array, " B"],
    context: Injection,
    scheduler: SchedulerConfig,
) -> Scene:
    """The scene of a batch.

    Args:
        generator: For its text encoder, if there is one.
        score: The same.
        negative: Embeddings of the negative prompt.
        batch: Windows of clips.
        keys: One key per sample.
        context: How contexts are computed from the batch.
        scheduler: The levels.
    """
    past, chunk, first = batch.history.shape[1:], batch.target.shape[1:], fold(keys[0], CONTEXT)
    draws = jax.vmap(lambda key: context.draw(fold(key, CONTEXT), past, first))(keys)
    text = score.text_embeds(batch.text)
    return Scene(
        contexts=context.contexts(batch, draws),
        rollout=jax.vmap(lambda key: rollout_draws(key, scheduler, chunk))(keys),
        generator_text=generator.text_embeds(batch.text),
        score_text=text,
        negative=jnp.broadcast_to(negative.astype(text.dtype), text.shape),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What all calls of a rollout share.

    Attributes:
        frozen: Frozen parameters of the generator.
        text: Keys and values of the text in all blocks.
        context: History tokens.
        tiers: The history, for its size.
    """

    frozen: Params
    text: TextContext
    context: Context
    tiers: Tiers


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WalkCall:
    """A network call of ``walk``, run as in sampling; see ``walk.SplitVelocity``.

    Attributes:
        graph: Structure of the generator's ``Networks``.
        layout: Tiers of the context.
    """

    graph: nnx.GraphDef[Networks]
    layout: HistoryConfig

    def embed(
        self, trainable: Params, frozen: Params, text: Float[Array, "B S E"], tiers: Tiers
    ) -> tuple[TextContext, Context]:
        """What the calls of a rollout share: the projected text and the embedded history."""
        model = self._model(trainable, frozen)
        return model.text_context(text), model.context(tiers)

    def __call__(
        self, weights: Params, fixed: Prepared, x: Float[Array, "B T H W C"], timestep: Float[Array, " B"], level: int
    ) -> Float[Array, "B T H W C"]:
        """See ``SplitVelocity``."""
        model = self._model(weights, fixed.frozen)
        full, frames = fixed.tiers.short.shape[2:4], x.shape[1] // model.config.patch_size[0]
        rope = model.rope(self.layout, full, x.shape[2:4], frames)
        return model.denoise(x, timestep, text=fixed.text, context=fixed.context, rope=rope)

    def _model(self, trainable: Params, frozen: Params) -> HeliosTransformer:
        return unflatten(self.graph, trainable | frozen).transformer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """What a differentiated call needs besides its input.

    Attributes:
        frozen: Frozen parameters of the generator.
        text: Text embeddings.
        tiers: The history.
    """

    frozen: Params
    text: Float[Array, "B S E"]
    tiers: Tiers


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExitCall:
    """A network call of ``pull_back.exit_vjp``, run as in training; see ``walk.SplitVelocity``.

    It embeds text and history itself, because their embeddings depend on trained parameters.

    Attributes:
        graph: Structure of the generator's ``Networks``.
        layout: Tiers of the context.
        execution: How the blocks are run.
    """

    graph: nnx.GraphDef[Networks]
    layout: HistoryConfig
    execution: Execution

    def __call__(
        self, weights: Params, fixed: Condition, x: Float[Array, "B T H W C"], timestep: Float[Array, " B"], level: int
    ) -> Float[Array, "B T H W C"]:
        """See ``SplitVelocity``."""
        model = unflatten(self.graph, weights | fixed.frozen).transformer
        return model(x, timestep, fixed.text, fixed.tiers, self.layout, execution=self.execution)


def scores_of(
    fake: HeliosTransformer,
    real: HeliosTransformer,
    scene: Scene,
    layout: HistoryConfig | None,
    execution: Execution,
) -> Scores:
    """The scores in the scene's plain context.

    Args:
        fake: The score network with adapters.
        real: The score network without them.
        scene: The window.
        layout: Tiers of the context; ``None``: the scores get no context.
        execution: How the blocks are run.
    """
    tiers = None if layout is None else scene.contexts.plain.tiers(layout)

    def call(model: HeliosTransformer, text: Array) -> Any:
        return lambda x, timestep: model(x, timestep, text, tiers, layout, execution=execution)

    return Scores(
        fake=call(fake, scene.score_text), real=call(real, scene.score_text), negative=call(real, scene.negative)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSampling:
    """Noise levels of the scores, see ``distillation.dmd``.

    Attributes:
        uniform_from: Step from which the generator's levels are uniform before the shift.
        low: Smallest timestep.
        high: Largest timestep.
    """

    uniform_from: int = 500
    low: float = 20.0
    high: float = 980.0

    def __post_init__(self) -> None:
        self.levels(1.0)  # checks the numbers

    def levels(self, shift: float) -> ScoreLevels:
        """The levels for samples with this shift."""
        return ScoreLevels(shift=shift, uniform_from=self.uniform_from, low=self.low, high=self.high)

    def draw(
        self,
        keys: Key[Array, " B"],
        x: Float[Array, "B T H W C"],
        model: HeliosTransformer,
        step: Int[Array, ""] | int | None,
        high: float | None = None,
    ) -> NoiseLevel:
        """The levels and the noise of a batch.

        Args:
            keys: One key per sample.
            x: The samples, for their size.
            model: The score network, for its tokens.
            step: Step of the run for the generator's levels; ``None``: the critic's.
            high: Another largest timestep.
        """
        settings = self if high is None else dataclasses.replace(self, high=high)
        levels = settings.levels(training_shift_factor("linear", patch_tokens(model.config, *x.shape[1:4])))

        def sample(key: Key[Array, ""]) -> tuple[Array, Array]:
            noise = jax.random.normal(fold(key, SCORE, 0), x.shape[1:])
            key = fold(key, SCORE, 1)
            return noise, levels.for_critic(key) if step is None else levels.for_generator(key, step)

        noise, timestep = jax.vmap(sample)(keys)
        return NoiseLevel(noise=noise, timestep=timestep, sigma=levels.sigma(timestep))
