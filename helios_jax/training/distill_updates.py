"""Stage 3: the programs that judge the generator's samples, as pure functions.

ScoreNetwork.compare        the gradient of distribution matching in a sample of the generator
ScoreNetwork.adversarial    the gradient of its adversarial loss in the sample
flow_gradient               the gradient of the fake score's loss in the critic's parameters
add_gan_gradient            plus that of the discriminator's loss
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.config import HistoryConfig
from helios_jax.diffusion.pyramid import block_mean, pyramid_levels
from helios_jax.distillation.dmd import critic_loss
from helios_jax.distillation.gan import gan_cotangent, gan_loss
from helios_jax.distillation.judge import judge_clips
from helios_jax.distillation.scores import clean_estimate, decoupled_cotangent, score_cotangent
from helios_jax.parallel.execution import SAMPLING, Execution
from helios_jax.training.distill_settings import DistillSettings
from helios_jax.training.methods import fold, mean_squares
from helios_jax.training.methods.distill import CROP, SCORE, Scene, scores_of
from helios_jax.training.metrics import Metrics
from helios_jax.training.networks import Networks
from helios_jax.training.params import Params, unflatten
from helios_jax.typing import AnyArray, Array, Float, Int, Key, Sequence

BANDS = (0, 250, 500, 750, 1000)
"""Borders of the bands of timesteps in which the critic's loss is logged."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScoreNetwork:
    """The score network in its two roles.

    Attributes:
        settings: Settings of the distillation.
        graph: Structure of the score networks with adapters.
        real_graph: Structure of the transformer alone, without adapters, as ``Networks``.
        execution: How the blocks are run in gradients.
    """

    settings: DistillSettings
    graph: nnx.GraphDef[Networks]
    real_graph: nnx.GraphDef[Networks]
    execution: Execution

    @property
    def layout(self) -> HistoryConfig | None:
        """Tiers of the scores' context; ``None`` if they get none."""
        return self.settings.context.layout if self.settings.own is None else None

    def judge(self, networks: Networks, x: Array, timestep: Array, scene: Scene) -> Float[Array, "B logits"]:
        """The discriminator as a ``distillation.judge.Judge`` of these networks, in the scene's plain context."""
        model, plain = networks.transformer, scene.contexts.plain
        context = None if self.layout is None else model.context(plain.tiers(self.layout))
        return judge_clips(
            model,
            networks.discriminator,
            x,
            timestep,
            text=model.condition_embedder.text(scene.score_text),
            context=context,
            layout=self.layout,
            full=plain.frames.shape[2:4],
            execution=self.execution,
        )

    def fake(self, trainable: Params, frozen: Params) -> Networks:
        """The score networks with the critic's adapters."""
        return unflatten(self.graph, trainable | frozen)

    def compare(
        self,
        critic: Params,
        frozen: Params,
        x: Float[Array, "B T H W C"],
        scene: Scene,
        keys: Key[Array, " B"],
        step: Int[Array, ""],
        *,
        level: int | None,
    ) -> tuple[Float[Array, "B T H W C"], Metrics]:
        """The gradient in the generator's sample, and metrics.

        Args:
            critic: Trained parameters of the critic.
            frozen: Frozen parameters of the score networks.
            x: The sample, or the result of a lower level.
            scene: Its window.
            keys: One key per sample.
            step: Step of the run.
            level: The level whose result x is; ``None``: the last.
        """
        settings = self.settings
        fake = self.fake(critic, frozen).transformer
        real = unflatten(self.real_graph, {path: frozen[path] for path in frozen if path.startswith("transformer/")})
        scores = scores_of(fake, real.transformer, scene, self.layout, SAMPLING)
        x, scale = self.clean(x, keys, level)
        at = settings.levels.draw(keys, x, fake, step)
        if settings.decoupled is None:
            cotangent, metrics = score_cotangent(scores, x, at, settings.guidance)
        else:
            others = jax.vmap(lambda key: fold(key, SCORE, 3))(keys)
            guided = settings.levels.draw(others, x, fake, step, settings.decoupled.guided_high)
            cotangent, metrics = decoupled_cotangent(scores, x, guided, at, settings.guidance)
        return scale * cotangent, metrics | {"timestep": at.timestep.mean()}

    def adversarial(
        self,
        critic: Params,
        frozen: Params,
        x: Float[Array, "B T H W C"],
        scene: Scene,
        keys: Key[Array, " B"],
        step: Int[Array, ""],
        *,
        level: int | None,
    ) -> tuple[Float[Array, "B T H W C"], Metrics]:
        """The gradient of the weighted adversarial loss in the generator's sample, and metrics; see ``compare``."""
        gan = self.settings.gan
        assert gan is not None, "called only with a discriminator"
        networks = self.fake(critic, frozen)
        x, scale = self.clean(x, keys, level)
        at = self.settings.levels.draw(keys, x, networks.transformer, step)
        cotangent, metrics = gan_cotangent(
            self.judge,
            networks,
            x,
            timestep=at.timestep,
            sigma=at.sigma,
            condition=scene,
            draws=jax.vmap(lambda key: gan.draw_generator(fold(key, CROP), x.shape[1:]))(keys),
            settings=gan,
            patch=networks.transformer.config.patch_size,
        )
        return scale * cotangent, metrics

    def clean(
        self, x: Float[Array, "B T H W C"], keys: Key[Array, " B"], level: int | None
    ) -> tuple[Float[Array, "B T H W C"], float]:
        """The clean estimate of a level's result, and its derivative."""
        end = 0.0 if level is None else pyramid_levels(self.settings.scheduler)[level].end
        if not end:
            return x, 1.0
        noise = jax.vmap(lambda key: jax.random.normal(fold(key, SCORE, 2), x.shape[1:]))(keys)
        return clean_estimate(x, noise, end), 1 / (1 - end)


def flow_gradient(
    scorer: ScoreNetwork,
    critic: Params,
    frozen: Params,
    x: Float[Array, "B T H W C"],
    scene: Scene,
    keys: Key[Array, " B"],
    *,
    level: int | None,
) -> tuple[Params, Metrics]:
    """The gradient of the fake score's loss, and metrics.

    Args:
        scorer: The score network.
        critic: Trained parameters of the critic.
        frozen: Frozen parameters of the score networks.
        x: The generator's sample, or the result of a lower level.
        scene: The sample's window.
        keys: One key per sample.
        level: See ``ScoreNetwork.compare``.
    """
    x, _ = scorer.clean(x, keys, level)

    def loss(critic: Params) -> tuple[Array, Metrics]:
        model = scorer.fake(critic, frozen).transformer
        at = scorer.settings.levels.draw(keys, x, model, None)
        predicted = scores_of(model, model, scene, scorer.layout, scorer.execution).fake(at.noised(x), at.timestep)
        value = critic_loss(predicted, at.noise, x)
        metrics = {"loss": value, "flow_loss": value, "timestep": at.timestep.mean()}
        return value, metrics | by_band(mean_squares(predicted - (at.noise - x)), at.timestep)

    return jax.grad(loss, has_aux=True)(critic)


def add_gan_gradient(
    scorer: ScoreNetwork,
    gradients: Params,
    metrics: Metrics,
    critic: Params,
    frozen: Params,
    x: Float[Array, "B T H W C"],
    scene: Scene,
    keys: Key[Array, " B"],
    real: Float[AnyArray, "B T2 H2 W2 C"],
    *,
    level: int | None,
) -> tuple[Params, Metrics]:
    """Adds the gradient of the discriminator's loss to results of ``flow_gradient`` with the same arguments.

    A program of its own needs half of the memory that the gradient of the summed loss would need.

    Args:
        scorer: See ``flow_gradient``.
        gradients: The gradient so far.
        metrics: Its metrics.
        critic: See ``flow_gradient``.
        frozen: See ``flow_gradient``.
        x: See ``flow_gradient``.
        scene: See ``flow_gradient``.
        keys: See ``flow_gradient``.
        real: A real chunk at full size.
        level: See ``flow_gradient``.
    """
    gan = scorer.settings.gan
    assert gan is not None, "called only with a discriminator"
    x, _ = scorer.clean(x, keys, level)
    trained = {path: array for path, array in critic.items() if _is_head(path) or not gan.separate}

    def loss(trained: Params) -> tuple[Array, Metrics]:
        networks = scorer.fake(critic | trained, frozen)
        at = scorer.settings.levels.draw(keys, x, networks.transformer, None)
        return gan_loss(
            scorer.judge,
            networks,
            x,
            at_size(jnp.asarray(real), x.shape[2:4]),
            noise=at.noise,
            timestep=at.timestep,
            sigma=at.sigma,
            condition=scene,
            draws=jax.vmap(lambda key: gan.draw_discriminator(fold(key, CROP), x.shape[1:]))(keys),
            settings=gan,
            patch=networks.transformer.config.patch_size,
        )

    (value, of_gan), more = jax.value_and_grad(loss, has_aux=True)(trained)
    gradients = gradients | {path: gradients[path] + array for path, array in more.items()}
    return gradients, metrics | of_gan | {"loss": metrics["loss"] + value}


def _is_head(path: str) -> bool:
    return path.startswith("discriminator/")


def at_size(clip: Float[Array, "B T H W C"], size: Sequence[int]) -> Float[Array, "B T H2 W2 C"]:
    """A clip halved by 2x2 means until it has this height and width, which is that of a level."""
    while clip.shape[2:4] != tuple(size):
        clip = block_mean(clip)
    return clip


def by_band(losses: Float[Array, " B"], timesteps: Float[Array, " B"]) -> Metrics:
    """The mean of losses in every band of timesteps, NaN where a band has no sample ("<name>?", see ``log``)."""
    bands = {}
    for low, high in itertools.pairwise(BANDS):
        inside = (timesteps >= low) & (timesteps < high)
        bands[f"loss_{low}_{high}?"] = jnp.where(inside, losses, 0).sum() / inside.sum()
    return bands
