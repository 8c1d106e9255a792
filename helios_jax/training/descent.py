"""Descent: one player that follows the gradient of one loss (a ``Method``).

    batch -> microbatches -> mean gradient of method.loss -> optimizer step -> moving average

is one compiled program that donates its state. The draws of sample i of step n follow from
fold_in(fold_in(seed, n), i) for any number of devices, processes and microbatches.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from helios_jax.parallel.memory import compiler_options
from helios_jax.training.experiment import Experiment
from helios_jax.training.flops import training_flops
from helios_jax.training.log import report
from helios_jax.training.methods import Method, SharesDecisions
from helios_jax.training.metrics import Metrics
from helios_jax.training.params import Params, count_text, unflatten
from helios_jax.training.procedure import Procedure
from helios_jax.training.sharding import microbatches, partition_specs
from helios_jax.training.state import Items, Restore, TrainState, released_state, split_params, start_state, state_items
from helios_jax.training.updates import Updater
from helios_jax.typing import Array, Int, Key

PLAYER = "networks"
"""The only player: all that is trained of the networks."""

Step = Callable[[TrainState, Params, Any], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descent:
    """Descends the loss of a method.

    Attributes:
        method: The loss.
    """

    method: Method

    def start(self, experiment: Experiment, mesh: Mesh, restore: Restore | None) -> "Descending":
        """See ``Procedure``."""
        return Descending(experiment, self.method, mesh, restore)


def procedure_of(experiment: Experiment) -> Procedure:
    """The procedure of an experiment: its method if that is a procedure, else ``Descent`` of the method's loss."""
    method = experiment.method
    return method if isinstance(method, Procedure) else Descent(method=method)


class Descending:
    """A ``Descent`` in progress; see ``Running``."""

    def __init__(self, experiment: Experiment, method: Method, mesh: Mesh, restore: Restore | None) -> None:
        networks = experiment.initial_networks(mesh)
        self._graph, trainable, self._frozen = split_params(networks, experiment.trainable, mesh)
        # Otherwise the parameters as loaded would stay in memory next to their fp32 copies.
        del networks
        report_counts(trainable, self._frozen, mesh)
        updater = updater_of(experiment, trainable)
        self._method = method
        self._state = start_state({PLAYER: updater}, {PLAYER: trainable}, mesh, restore)
        # The state is donated: parameters, moments and averages are updated in place, because a second copy would not
        # fit. That requires outputs with the shardings of the inputs, which the compiler would not choose by itself.
        # Frozen parameters are only read, so they are neither donated nor returned.
        self._step = jax.jit(
            make_step(experiment, method, self._graph, updater, mesh),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda array: array.sharding, self._state), None),
            compiler_options=compiler_options(experiment.remat),
        )

    def step(self, batch: Any, number: int) -> Metrics:
        """See ``Running``. The device counts steps itself, so nothing is copied to it."""
        self._state, metrics = self._step(self._state, self._frozen, batch)
        return metrics

    def items(self) -> Items:
        """See ``Running``."""
        return state_items(self._state)

    def frozen(self) -> Params:
        """See ``Running``."""
        return self._frozen

    def release(self) -> None:
        """See ``Running``."""
        self._state = released_state(self._state)

    def networks(self) -> nnx.Module:
        """See ``Running``."""
        return unflatten(self._graph, self._state.players[PLAYER].averaged | self._frozen)

    def flops(self, batch: Any) -> float | None:
        """See ``Running``."""
        trainable = self._state.players[PLAYER].trainable
        networks = unflatten(self._graph, trainable | self._frozen)
        return training_flops(self._method, networks, batch, trainable, self._frozen)


def make_step(experiment: Experiment, method: Method, graph: nnx.GraphDef, updater: Updater, mesh: Mesh) -> Step:
    """The training step: gradients of all microbatches, one update.

    If the loss, the gradient or the update is not finite, the update is skipped and the metric "skipped" is 1.
    """

    def loss(
        trainable: Params, frozen: Params, first_key: Key[Array, ""], batch: Any, keys: Key[Array, " B"]
    ) -> tuple[Array, Metrics]:
        arguments = unflatten(graph, trainable | frozen), batch, keys, experiment.execution
        if isinstance(method, SharesDecisions):
            value, metrics = method.microbatch_loss(*arguments, first_key)
        else:
            value, metrics = method.loss(*arguments)
        return value, {"loss": value, **metrics}

    def step(state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, Metrics]:
        player = state.players[PLAYER]
        keys = sample_keys(experiment.seed, state.step, experiment.batch_size)
        gradient = functools.partial(jax.grad(loss, has_aux=True), player.trainable, frozen, keys[0])
        gradients, metrics = mean_gradient(gradient, batch, keys, experiment.accumulation, mesh)
        player, applied = updater.apply(player, gradients, metrics["loss"], average=True)
        return TrainState(step=state.step + 1, players={PLAYER: player}), metrics | applied

    return step


def mean_gradient(
    gradient: Callable[[Any, Key[Array, " B"]], tuple[Params, Metrics]],
    batch: Any,
    keys: Key[Array, " B"],
    count: int,
    mesh: Mesh,
) -> tuple[Params, Metrics]:
    """The gradient and the metrics of a batch, one microbatch after the other; inside a jitted function.

    Args:
        gradient: Computes both, as means over the samples of a microbatch.
        batch: The batch.
        keys: One key per sample.
        count: Number of microbatches.
        mesh: Where the batch lives.
    """
    # Keys belong to samples and are split with the batch: microbatches change memory use, not draws.
    leaves, structure = jax.tree.flatten((batch, keys))
    pieces = microbatches(leaves, partition_specs((batch, keys)), count, mesh)

    def accumulate(sums: Any, piece: list[Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(*structure.unflatten(piece))), None

    first = structure.unflatten([leaf[0] for leaf in pieces])
    if count == 1:
        # No loop of one iteration: XLA compiles the body of a loop to slower code, much slower on CPUs.
        return gradient(*first)
    # A scan, not an unrolled loop: activations of only one microbatch exist at a time. Dividing the sums by
    # ``count`` gives the means of the whole batch, because losses are means over samples.
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, *first))
    sums, _ = jax.lax.scan(accumulate, zeros, pieces)
    return jax.tree.map(lambda total: total / count, sums)


def updater_of(experiment: Experiment, trainable: Params) -> Updater:
    """The optimizer and the moving average of an experiment with one player."""
    return Updater(
        optimizer=experiment.optimizer.build(trainable, experiment.steps),
        learning_rates=experiment.optimizer.learning_rates(experiment.steps),
        ema=experiment.ema,
    )


def report_counts(trainable: Params, frozen: Params, mesh: Mesh) -> None:
    """Reports the numbers of parameters."""
    counts = f"{count_text(trainable)} parameters are trained and {count_text(frozen)} are frozen"
    report(f"{counts}, on {dict(mesh.shape)}")


def sample_keys(seed: int, step: Int[Array, ""] | int, batch_size: int) -> Key[Array, " {batch_size}"]:
    """The key of every sample of a global batch."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))
