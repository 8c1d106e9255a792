"""Stage 1: flow matching at full resolution, with history.

    x_s  = (1 - s) x + s z                                        x: the chunk, z: noise, s: noise level    (1)
    loss = mean of w(s) |v(x_s, 1000 s, text, context) - (z - x)|^2                                         (2)

(arXiv 2603.04379). Sampling inverts (1) by ``diffusion.flow.predict_clean``. The path (1), the context and the network
are the functions that sampling runs. Everything except the network is computed in fp32, where the published training
rounds x, z and s to bf16 before mixing them.
"""

import dataclasses

import jax
import jax.numpy as jnp

from helios_jax.config import patch_tokens
from helios_jax.diffusion.flow import interpolate, velocity
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
from helios_jax.training.timesteps import TimestepSampling
from helios_jax.typing import Array, Float, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseDraws:
    """Everything random about a batch.

    Attributes:
        noise: z of equation (1).
        u: The uniform draw that determines the noise level, see ``TimestepSampling``.
        context: Drops and corruptions of the context.
        input: Corruption of x in (1); ``None``: none.
    """

    noise: Float[Array, "*B T H W C"]
    u: Float[Array, "*B"]
    context: InjectionDraws
    input: CorruptionDraws | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Trains ``networks.transformer`` (and, from tokens, ``networks.text_encoder``) on ``LatentBatch``.

    Attributes:
        context: How the context is computed from the batch.
        timesteps: Noise levels and their weights.
        input_corruption: Damages the x of equation (1), never that of (2); ``None``: no damage, as published.
    """

    context: Injection = dataclasses.field(default_factory=Injection)
    timesteps: TimestepSampling = dataclasses.field(default_factory=TimestepSampling)
    input_corruption: Corruption | None = None

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
    ) -> BaseDraws:
        """All draws for a batch; only the shapes of the batch are used.

        Args:
            networks: Not used.
            batch: The batch.
            keys: One key per sample.
            first_key: The key of the first sample of the step, for ``Injection.decide``; ``None``: ``keys[0]``.
        """
        first_context = fold(keys[0] if first_key is None else first_key, CONTEXT)
        chunk, past = batch.target.shape[1:], batch.history.shape[1:]

        def sample(key: Key[Array, ""]) -> BaseDraws:
            return BaseDraws(
                noise=jax.random.normal(fold(key, NOISE), chunk),
                u=self.timesteps.draw(fold(key, TIMESTEP)),
                context=self.context.draw(fold(key, CONTEXT), past, first_context),
                input=self.input_corruption.draw(fold(key, INPUT), chunk) if self.input_corruption else None,
            )

        return jax.vmap(sample)(keys)

    def loss_from_draws(
        self, networks: Networks, batch: LatentBatch, draws: BaseDraws, execution: Execution
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation (2); the metric "mse" is unweighted."""
        transformer = networks.transformer
        clean = source = jnp.asarray(batch.target, jnp.float32)
        if self.input_corruption is not None and draws.input is not None:
            source = corrupt(clean, draws.input, self.input_corruption, Segments.whole(clean.shape[1]))
        sigma, timestep = self.timesteps.at(draws.u, patch_tokens(transformer.config, *clean.shape[1:4]))
        layout = self.context.layout
        predicted = transformer(
            interpolate(draws.noise, source, per_sample(sigma)),
            timestep,
            networks.text_embeds(batch.text),
            self.context.history(batch, draws.context).tiers(layout),
            layout,
            execution=execution,
            chunk=self.context.chunks(batch, draws.context),
        )
        errors = mean_squares(predicted - velocity(draws.noise, clean))
        return (self.timesteps.weight(sigma) * errors).mean(), {"mse": errors.mean()}

    def network_calls(self, networks: Networks, batch: LatentBatch) -> NetworkCalls:
        """One call, see ``CountsCalls``."""
        config, (frames, height, width) = networks.transformer.config, batch.target.shape[1:4]
        return NetworkCalls(
            current=(patch_tokens(config, frames, height, width),),
            history=history_tokens(config, self.context.layout, height, width),
            text=batch.text.length,
        )
