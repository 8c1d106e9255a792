"""Methods: losses. A method turns networks and a batch into a loss, which ``descent`` descends.

    base      flow matching at full resolution (stage 1)
    pyramid   flow matching on the levels of the pyramid (stage 2)
    ode       regression of a teacher's recorded end points (stage 3)
    vae       reconstruction and KL of the VAE

``consistency`` (stage 3, without recordings) also needs a teacher and an average, and is therefore a procedure.

By convention a method's ``loss`` is composed of two functions, so that tests can replay recorded draws:

    draws = method.draw(networks, batch, keys)                               everything random
    method.loss_from_draws(networks, batch, draws, execution)                a deterministic function of the draws

``draw`` uses one key per sample. A sample's draws therefore depend on its own key alone: not on the number of devices,
the order of the batch or the other samples. Losses are means over samples, so that the losses of equal microbatches
average to the loss of the whole batch. A method that makes decisions once for all samples of a step
(``SharesDecisions``) draws them from the key of the step's first sample.

To add a method, write a frozen dataclass with ``loss`` in a file here, and an experiment file that uses it. Training
that does not follow one loss for one player is a ``procedure.Procedure``; an experiment takes it in the same field.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from helios_jax.parallel.execution import Execution
from helios_jax.training.metrics import Metrics
from helios_jax.training.networks import Networks
from helios_jax.typing import AnyArray, Array, Float, Int, Key

NOISE, TIMESTEP, CONTEXT, INPUT = range(4)
"""Uses of a sample's key, by which it is folded. Existing numbers never change: they decide what a seed means."""


@runtime_checkable
class Method(Protocol):
    """A loss. Methods are frozen dataclasses and therefore static under ``jax.jit``."""

    def loss(
        self, networks: Networks, batch: Any, keys: Key[Array, " B"], execution: Execution
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean loss of a batch, differentiable with respect to the parameters of ``networks``.

        Args:
            networks: ``Networks`` that include all networks the method trains or runs.
            batch: What the experiment's data yields: ``LatentBatch``, ``VideoBatch`` or a type of its own.
            keys: One key per sample of the batch.
            execution: How a transformer's blocks are run; changes memory and speed, not the loss.

        Returns:
            The loss, and scalars to log in addition to it.
        """
        ...


@runtime_checkable
class SharesDecisions(Protocol):
    """A ``Method`` that can make decisions once for all samples of a step.

    A step may be computed in several microbatches, each with a different first sample. The key of the step's first
    sample is therefore passed to all of them.
    """

    def microbatch_loss(
        self,
        networks: Networks,
        batch: Any,
        keys: Key[Array, " B"],
        execution: Execution,
        first_key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """Like ``Method.loss``, for a part of a batch.

        Args:
            networks: See ``Method.loss``.
            batch: The part.
            keys: One key per sample of the part.
            execution: See ``Method.loss``.
            first_key: The key of the first sample of the whole batch.
        """
        ...


def per_sample(values: Float[Array, " B"]) -> Float[Array, "B 1 1 1 1"]:
    """One value per sample, ready to be broadcast against clips."""
    return values[:, None, None, None, None]


def mean_squares(error: Float[Array, "B T H W C"]) -> Float[Array, " B"]:
    """The mean square of every sample, in fp32."""
    return jnp.square(error.astype(jnp.float32)).mean((1, 2, 3, 4))


def fold(key: Key[Array, ""], *uses: int | Int[AnyArray, ""]) -> Key[Array, ""]:
    """The key for a use, or for a use within a use."""
    for use in uses:
        key = jax.random.fold_in(key, use)
    return key
