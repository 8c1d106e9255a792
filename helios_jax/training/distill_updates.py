"""Stage 3: the programs that judge the generator's samples, as pure functions.

Judge.compare    the gradient of distribution matching in a sample of the generator
update_critic    one step of the critic on a sample, from its loss to its new parameters
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.diffusion.pyramid import pyramid_levels
from helios_jax.distillation.dmd import critic_loss
from helios_jax.distillation.scores import clean_estimate, decoupled_cotangent, score_cotangent
from helios_jax.parallel.execution import SAMPLING, Execution
from helios_jax.training.distill_settings import DistillSettings
from helios_jax.training.methods import fold, mean_squares
from helios_jax.training.methods.distill import SCORE, Scene, scores_of
from helios_jax.training.metrics import Metrics
from helios_jax.training.networks import Networks
from helios_jax.training.params import Params, unflatten
from helios_jax.training.updates import Player, Updater
from helios_jax.typing import Array, Float, Int, Key

BANDS = (0, 250, 500, 750, 1000)
"""Borders of the bands of timesteps in which the critic's loss is logged."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
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
        layout = settings.context.layout if settings.own is None else None
        scores = scores_of(fake, real.transformer, scene, layout, SAMPLING)
        x, scale = self.clean(x, keys, level)
        at = settings.levels.draw(keys, x, fake, step)
        if settings.decoupled is None:
            cotangent, metrics = score_cotangent(scores, x, at, settings.guidance)
        else:
            others = jax.vmap(lambda key: fold(key, SCORE, 3))(keys)
            guided = settings.levels.draw(others, x, fake, step, settings.decoupled.guided_high)
            cotangent, metrics = decoupled_cotangent(scores, x, guided, at, settings.guidance)
        return scale * cotangent, metrics | {"timestep": at.timestep.mean()}

    def clean(
        self, x: Float[Array, "B T H W C"], keys: Key[Array, " B"], level: int | None
    ) -> tuple[Float[Array, "B T H W C"], float]:
        """The clean estimate of a level's result, and its derivative."""
        end = 0.0 if level is None else pyramid_levels(self.settings.scheduler)[level].end
        if not end:
            return x, 1.0
        noise = jax.vmap(lambda key: jax.random.normal(fold(key, SCORE, 2), x.shape[1:]))(keys)
        return clean_estimate(x, noise, end), 1 / (1 - end)


def update_critic(
    judge: Judge,
    updater: Updater,
    player: Player,
    frozen: Params,
    x: Float[Array, "B T H W C"],
    scene: Scene,
    keys: Key[Array, " B"],
    *,
    level: int | None,
) -> tuple[Player, Metrics]:
    """One step of the critic.

    Args:
        judge: The score network.
        updater: How the critic is updated.
        player: The critic.
        frozen: Frozen parameters of the score networks.
        x: The generator's sample, or the result of a lower level.
        scene: Its window.
        keys: One key per sample.
        level: See ``Judge.compare``.
    """
    settings = judge.settings
    x, _ = judge.clean(x, keys, level)
    layout = settings.context.layout if settings.own is None else None

    def loss(trainable: Params) -> tuple[Array, Metrics]:
        model = judge.fake(trainable, frozen).transformer
        at = settings.levels.draw(keys, x, model, None)
        score = scores_of(model, model, scene, layout, judge.execution).fake
        predicted = score(at.noised(x), at.timestep)
        value = critic_loss(predicted, at.noise, x)
        metrics = {"loss": value, "timestep": at.timestep.mean()}
        return value, metrics | by_band(mean_squares(predicted - (at.noise - x)), at.timestep)

    gradients, metrics = jax.grad(loss, has_aux=True)(player.trainable)
    player, applied = updater.apply(player, gradients, metrics["loss"], average=False)
    return player, metrics | applied


def by_band(losses: Float[Array, " B"], timesteps: Float[Array, " B"]) -> Metrics:
    """The mean of losses in every band of timesteps, NaN where a band has no sample ("<name>?", see ``log``)."""
    bands = {}
    for low, high in itertools.pairwise(BANDS):
        inside = (timesteps >= low) & (timesteps < high)
        bands[f"loss_{low}_{high}?"] = jnp.where(inside, losses, 0).sum() / inside.sum()
    return bands
