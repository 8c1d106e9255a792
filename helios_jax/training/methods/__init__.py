"""Methods: what is learnt. A method turns networks and a batch into a loss.

    base      flow matching at full resolution (stage 1)
    pyramid   flow matching on the levels of the pyramid (stage 2)
    vae       reconstruction and KL of the VAE

Each is split in two. ``draw`` makes everything random from one key per sample; ``loss_from_draws`` is a deterministic
function of its result. A sample's draws therefore depend on its own key alone: not on the number of devices, the
order of the batch or the other samples. Losses are means over samples, so that those of equal microbatches average to
the loss of the whole.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from helios_jax.parallel.execution import Execution
from helios_jax.training.networks import Networks
from helios_jax.typing import Array, Float, Key

Metrics = dict[str, Float[Array, ""]]
"""Scalars to be logged beside the loss, means over the samples of the batch."""

NOISE, TIMESTEP, CONTEXT, INPUT = range(4)
"""Uses that a sample's key is folded by. Existing numbers never change: they decide what a seed means."""


@runtime_checkable
class Method(Protocol):
    """What the trainer runs. Methods are frozen dataclasses, hence static under ``jax.jit``."""

    def loss(
        self, networks: Networks, batch: Any, keys: Key[Array, " B"], execution: Execution
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean loss of a batch, differentiable with respect to the parameters of ``networks``.

        Args:
            networks: At least those that the method trains or runs.
            batch: The batch of the method: ``LatentBatch`` or ``VideoBatch``.
            keys: One key per sample of the batch.
            execution: How a transformer's blocks are run; changes memory and speed, not the loss.
        """
        ...


def per_sample(values: Float[Array, " B"]) -> Float[Array, "B 1 1 1 1"]:
    """One value per sample, ready to be broadcast against clips."""
    return values[:, None, None, None, None]


def mean_squares(error: Float[Array, "B T H W C"]) -> Float[Array, " B"]:
    """The mean square of every sample, in fp32."""
    return jnp.square(error.astype(jnp.float32)).mean((1, 2, 3, 4))


def fold(key: Key[Array, ""], *uses: int) -> Key[Array, ""]:
    """The key for a use, or for a use within a use."""
    for use in uses:
        key = jax.random.fold_in(key, use)
    return key
