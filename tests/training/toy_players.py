"""A procedure with two players: a generator, and a critic that is updated five times as often."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from toy_training import toy_experiment

from helios_jax.models.layers import linear
from helios_jax.training.descent import sample_keys
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import Experiment
from helios_jax.training.networks import Networks
from helios_jax.training.optimizer import AdamW
from helios_jax.training.params import flatten, unflatten
from helios_jax.training.state import released_state, start_state, state_items
from helios_jax.training.updates import Updater

RATIO = 5
"""Steps per update of the generator; the critic is updated at every step."""

COPIES = 3
"""First steps, at which the generator's average is updated whether or not the generator is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyPlayersStart:
    """A generator of 12 pixels and a critic of them, both linear."""

    def networks(self, mesh: Any, key: Any) -> Networks:
        rngs = nnx.Rngs(key)
        return Networks(
            generator=linear(12, 12, dtype=jnp.float32, rngs=rngs), critic=linear(12, 1, dtype=jnp.float32, rngs=rngs)
        )


def pixels(batch: Any) -> Any:
    return batch.frames.reshape(len(batch.frames), -1).astype(jnp.float32) / 255


def made(generator: Any, shape: tuple[int, ...], keys: Any) -> Any:
    return generator(jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys))


def generator_loss(networks: Any, batch: Any, keys: Any) -> Any:
    real = pixels(batch)
    return jax.nn.softplus(-networks.critic(made(networks.generator, real.shape, keys))).mean()


def critic_loss(networks: Any, batch: Any, keys: Any) -> Any:
    real = pixels(batch)
    fake = networks.critic(made(networks.generator, real.shape, keys))
    return (jax.nn.softplus(fake) + jax.nn.softplus(-networks.critic(real))).mean()


LOSSES = {"generator": generator_loss, "critic": critic_loss}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyPlayers:
    """Settings of the procedure. The generator has the experiment's optimizer and moving average.

    ``nan_at`` makes the critic's loss of a batch with that first pixel not a number.
    """

    critic: AdamW = dataclasses.field(default_factory=lambda: AdamW(learning_rate=1e-2, weight_decay=0.0))
    nan_at: int = -1

    def start(self, experiment: Experiment, mesh: Any, restore: Any) -> "RunningPlayers":
        return RunningPlayers(self, experiment, mesh, restore)


class RunningPlayers:
    def __init__(self, settings: ToyPlayers, experiment: Experiment, mesh: Any, restore: Any) -> None:
        self._graph, params = flatten(experiment.initial_networks(mesh))
        trainable = {
            name: {path: array for path, array in params.items() if path.startswith(f"{name}/")} for name in LOSSES
        }
        self._updaters = {
            name: Updater(
                optimizer=adamw.build(trainable[name], experiment.steps),
                learning_rates=adamw.learning_rates(experiment.steps),
                ema=ema,
            )
            for name, adamw, ema in (
                ("generator", experiment.optimizer, experiment.ema),
                ("critic", settings.critic, None),
            )
        }
        self._settings, self._experiment = settings, experiment
        self.state = start_state(self._updaters, trainable, mesh, restore)

    @functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
    def _update(self, name: str, player: Any, other: Any, batch: Any, number: Any) -> Any:
        keys = sample_keys(self._experiment.seed, number, self._experiment.batch_size)

        def loss(params: Any) -> Any:
            value = LOSSES[name](unflatten(self._graph, params | other), batch, keys)
            bad = (batch.frames[:, 0, 0, 0, 0] == self._settings.nan_at).any()
            return jnp.where(bad & (name == "critic"), jnp.nan, value)

        value, gradients = jax.value_and_grad(loss)(player.trainable)
        player, metrics = self._updaters[name].apply(player, gradients, value, average=False)
        return player, {f"{name}/{key}": found for key, found in {"loss": value, **metrics}.items()}

    def step(self, batch: Any, number: int) -> dict[str, Any]:
        players, metrics = dict(self.state.players), {}
        updates_generator = (number - 1) % RATIO == 0
        for name, other in (("generator", "critic"), ("critic", "generator")):
            if name == "critic" or updates_generator:
                frozen = players[other].trainable
                players[name], found = self._update(name, players[name], frozen, batch, number)
                metrics |= found
        if updates_generator or number <= COPIES:
            players["generator"] = jax.jit(self._updaters["generator"].average)(players["generator"])
        self.state = dataclasses.replace(self.state, step=self.state.step + 1, players=players)
        return metrics

    def frozen(self) -> dict[str, Any]:
        return {}

    def release(self) -> None:
        self.state = released_state(self.state)

    def items(self) -> Any:
        return state_items(self.state)

    def networks(self) -> Any:
        generator, critic = (self.state.players[name].averaged for name in LOSSES)
        return unflatten(self._graph, generator | critic)

    def flops(self, batch: Any) -> None:
        return None


def players_experiment(**changes: Any) -> Experiment:
    """A run of 14 steps, each logged, with checkpoints after 4, 8 and 12."""
    settings = {"start": ToyPlayersStart(), "method": ToyPlayers(), "steps": 14, "ema": Ema(decay=0.9)}
    return toy_experiment(**settings | changes)
