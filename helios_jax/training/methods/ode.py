"""Stage 3, initialisation: regression of the end points of a teacher's trajectories.

The teacher's videos are recorded (``data.helios_ode``). On each level of a chunk the trajectory has points x_k at the
noise levels s_k of the student's steps, with timesteps t_k, and ends in m. The student is to reach m in one step from
any of them:

    m_hat = x_k - s_k v(x_k, t_k, text, context)                 k uniform over the level's points             (1)
    loss  = weight * mean of |m_hat - m|^2 / 2                   over levels, samples and elements             (2)

(arXiv 2603.04379, which publishes weight 80.) (1) is how the student's sampler predicts the end point, the step (2) of
``diffusion.solvers.Dmd``. The context is the recorded past, neither dropped nor corrupted: the first chunk has none,
others have the anchor and the frames before them.

A sample is one chunk with all its levels. The published step takes three of the five chunks of one video; with three
chunks of a video as samples and ``accumulation=3``, so does a step here.

The network's timestep input is floor(t), as the student will be sampled; published training passes t.
"""

import dataclasses

import jax
import jax.numpy as jnp

from helios_jax.config import HistoryConfig, patch_tokens
from helios_jax.context import History
from helios_jax.diffusion.flow import predict_clean
from helios_jax.parallel.execution import Execution
from helios_jax.training.batch import OdeBatch
from helios_jax.training.flops import NetworkCalls, history_tokens
from helios_jax.training.methods import TIMESTEP, fold, mean_squares, per_sample
from helios_jax.training.metrics import Metrics
from helios_jax.training.networks import Networks
from helios_jax.typing import Array, Float, Key
from helios_jax.user_input import finite_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ode:
    """Trains ``networks.transformer`` on ``OdeBatch``.

    Attributes:
        layout: Geometry of the context, as in sampling.
        weight: Weight of the loss (2).
        integer_timesteps: The network's timestep input is floor(t), as in sampling; off: t, as published.
    """

    layout: HistoryConfig = dataclasses.field(default_factory=HistoryConfig)
    weight: float = 80.0
    integer_timesteps: bool = True

    def __post_init__(self) -> None:
        if not finite_number(self.weight, "method.weight", at_least=0):
            raise ValueError("method.weight=0 would train nothing; it must be above 0")
        self.layout.check_relative("method.layout")

    def loss(
        self, networks: Networks, batch: OdeBatch, keys: Key[Array, " B"], execution: Execution
    ) -> tuple[Float[Array, ""], Metrics]:
        """See ``Method``."""
        return self.loss_from_draws(networks, batch, self.draw(networks, batch, keys), execution)

    def draw(self, networks: Networks, batch: OdeBatch, keys: Key[Array, " B"]) -> Float[Array, "B levels"]:
        """U(0,1) that chooses k of (1) on each level of each sample."""
        levels = len(batch.levels)
        return jax.vmap(lambda key: jax.random.uniform(fold(key, TIMESTEP), (levels,)))(keys)

    def loss_from_draws(
        self, networks: Networks, batch: OdeBatch, draws: Float[Array, "B levels"], execution: Execution
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation (2); the metrics "level0/mse", ... are mean squares without weight and 1/2."""
        transformer, layout = networks.transformer, self.layout
        history = History(frames=jnp.asarray(batch.history), anchor=jnp.asarray(batch.anchor))
        text = transformer.condition_embedder.text(networks.text_embeds(batch.text))
        context = transformer.context(history.tiers(layout))
        rows = jnp.arange(len(draws))
        errors: list[Array] = []
        for index, points in enumerate(batch.levels):
            count = points.sigmas.shape[1]
            k = jnp.minimum(jnp.floor(draws[:, index] * count).astype(jnp.int32), count - 1)
            x, timestep, sigma = (
                jnp.asarray(array, jnp.float32)[rows, k] for array in (points.latents, points.timesteps, points.sigmas)
            )
            v = transformer.denoise(
                x,
                jnp.floor(timestep) if self.integer_timesteps else timestep,
                text=text,
                context=context,
                rope=transformer.rope(layout, history.frames.shape[2:4], x.shape[2:4], x.shape[1]),
                execution=execution,
            )
            end = predict_clean(x, v.astype(jnp.float32), per_sample(sigma))
            errors.append(mean_squares(end - jnp.asarray(points.end, jnp.float32)))
        loss = self.weight * 0.5 * jnp.stack(errors).mean()
        return loss, {f"level{index}/mse": error.mean() for index, error in enumerate(errors)}

    def network_calls(self, networks: Networks, batch: OdeBatch) -> NetworkCalls:
        """One call on each level, see ``CountsCalls``."""
        config, (height, width) = networks.transformer.config, batch.history.shape[2:4]
        return NetworkCalls(
            current=tuple(patch_tokens(config, *points.end.shape[1:4]) for points in batch.levels),
            history=history_tokens(config, self.layout, height, width),
            text=batch.text.length,
        )
