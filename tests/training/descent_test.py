"""What a step passes to its method."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toy_training import ToyIterator, ToyNetworks, toy_experiment

from helios_jax.training.descent import PLAYER, make_step, sample_keys
from helios_jax.training.sharding import MeshShape, put_batch
from helios_jax.training.state import split_params, start_state
from helios_jax.training.updates import Updater


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decides:
    """One decision per step; the metrics show it, and the mean of a draw of each sample."""

    def loss(self, networks: Any, batch: Any, keys: Any, execution: Any) -> Any:
        raise AssertionError("a microbatch does not know the step's first sample")

    def microbatch_loss(self, networks: Any, batch: Any, keys: Any, execution: Any, first_key: Any) -> Any:
        size = sum(jnp.square(leaf).mean() for leaf in jax.tree.leaves(nnx.state(networks)))
        own = jax.vmap(jax.random.uniform)(keys).mean()
        return size, {"decision": jax.random.uniform(first_key), "own": own}


@pytest.mark.parametrize("accumulation", [1, 4])
def test_decisions_of_a_step_are_those_of_its_first_sample(accumulation):
    experiment, mesh = toy_experiment(accumulation=accumulation), MeshShape().build()
    graph, trainable, frozen = split_params(ToyNetworks(nnx.Rngs(0), 8), experiment.trainable, mesh)
    optimizer = experiment.optimizer
    updater = Updater(optimizer=optimizer.build(trainable, 10), learning_rates=optimizer.learning_rates(10), ema=None)
    state = start_state({PLAYER: updater}, {PLAYER: trainable}, mesh, None)
    step = jax.jit(make_step(experiment, Decides(), graph, updater, mesh))
    batch = put_batch(next(ToyIterator(8, (0, 1), 0)), 8, mesh)
    for number in range(2):
        state, metrics = step(state, frozen, batch)
        keys = sample_keys(experiment.seed, number, 8)
        own = np.mean([jax.random.uniform(key) for key in keys])
        assert float(metrics["decision"]) == pytest.approx(float(jax.random.uniform(keys[0])), rel=1e-6)
        assert float(metrics["own"]) == pytest.approx(own, rel=1e-6)
