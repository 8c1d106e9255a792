"""One player, and how its parameters change: the optimizer step and the moving average.

    g  --clip, AdamW-->  p <- p + u        ``Updater.apply``       counted by ``updates``
    e <- d e + (1 - d) p                   ``Updater.average``     counted by ``ema_count``

``apply`` can average too. Procedures with several players also average at steps that do not update the player; the
decay d follows from the number of averagings (``ema``).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from helios_jax.training.ema import Ema
from helios_jax.training.metrics import Metrics
from helios_jax.training.optimizer import updates_applied
from helios_jax.training.params import Params
from helios_jax.typing import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Player:
    """Parameters that are trained together; a pytree of arrays, or of their shapes or shardings.

    Attributes:
        trainable: The parameters, fp32.
        optimizer: State of the optimizer.
        updates: Calls of ``Updater.apply``, int32; skipped updates count.
        ema: Moving averages of ``trainable``; empty if there are none.
        ema_count: Steps of the moving average, int32; skipped ones count.
    """

    trainable: Params
    optimizer: Any
    updates: Any
    ema: Params
    ema_count: Any

    @property
    def averaged(self) -> Params:
        """The parameters to sample with: the moving averages if there are any."""
        return self.ema or self.trainable


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Updater:
    """How a player is updated. Its methods are pure functions for use under ``jax.jit``.

    Attributes:
        optimizer: Clipping and AdamW, from ``AdamW.build``.
        learning_rates: The learning rate by number of updates.
        ema: The moving average; ``None``: none.
    """

    optimizer: optax.GradientTransformation
    learning_rates: optax.Schedule
    ema: Ema | None

    def begin(self, trainable: Params) -> Player:
        """The player before its first update."""
        return Player(
            trainable=trainable,
            optimizer=self.optimizer.init(trainable),
            updates=jnp.zeros((), jnp.int32),
            ema=trainable if self.ema else {},
            ema_count=jnp.zeros((), jnp.int32),
        )

    def apply(
        self, player: Player, gradients: Params, loss: Float[Array, ""], *, average: bool
    ) -> tuple[Player, Metrics]:
        """One optimizer step. It is skipped if loss, gradient or update is not finite.

        Args:
            player: The player.
            gradients: The gradient of its loss.
            loss: The loss.
            average: Whether a step of the moving average follows, which is skipped with the update.

        Returns:
            The player, and the metrics "gradient_norm" (before clipping), "update_norm", "learning_rate" (the one that
            was applied; 0 if the update was skipped) and "skipped" (1 or 0).
        """
        norm = optax.tree.norm(gradients)
        rate = self.learning_rates(updates_applied(player.optimizer))
        updates, kept = self.optimizer.update(gradients, player.optimizer, player.trainable)
        trainable: Any = optax.apply_updates(player.trainable, updates)
        new = dataclasses.replace(player, trainable=trainable, optimizer=kept)
        if average:
            new = self.average(new)
        # A NaN in one gradient would spread to all parameters, moments and averages, for good. The choice is made on
        # the device, by a select rather than a branch: the host does not wait, and the memory is donated either way.
        # The log reports the skip by the player's name, and stops the run if it has to.
        # The update alone can be bad, if a moment is damaged or has overflowed.
        size = optax.tree.norm(updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(size)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, player)
        # Counters include skipped steps, so the player keeps time with the run.
        new = dataclasses.replace(
            new, updates=player.updates + 1, ema_count=player.ema_count + (average and self.ema is not None)
        )
        metrics: Metrics = {
            "gradient_norm": norm,
            "update_norm": size,
            "learning_rate": jnp.where(finite, rate, 0.0),
            "skipped": 1.0 - finite,
        }
        return new, metrics

    def average(self, player: Player) -> Player:
        """Takes one step of the moving average; without an average, returns the player unchanged."""
        if self.ema is None:
            return player
        count = player.ema_count + 1
        return dataclasses.replace(player, ema=self.ema.update(player.ema, player.trainable, count), ema_count=count)
