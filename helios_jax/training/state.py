"""The state of training: players, each with parameters, optimizer and moving averages.

Frozen parameters are not part of it. A procedure keeps them separately, because steps only read them. Checkpoints omit
them, because they equal the weights that training starts from.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from helios_jax.training.params import Params, Rules, flatten, values_by_pattern
from helios_jax.training.sharding import place, state_shardings
from helios_jax.training.updates import Player, Updater

Items = dict[str, dict[str, Any]]
"""What a checkpoint holds of each player, by name of a ``Player``'s field; fields without arrays are left out."""

Restore = Callable[[Items], tuple[int, Items]]
"""Reads a checkpoint: from items as shapes, dtypes and shardings, the number of steps done and the items themselves."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of training; a pytree of arrays, or of their shapes or shardings.

    Attributes:
        step: Steps done, int32.
        players: The players by name.
    """

    step: Any
    players: dict[str, Player]


def split_params(networks: nnx.Module, trainable: Rules, mesh: Mesh) -> tuple[nnx.GraphDef, Params, Params]:
    """Static structure, trained parameters (fp32) and frozen parameters of networks, on the mesh.

    Raises:
        ValueError: ``trainable`` (default 0) selects nothing, or has a rule without effect.
    """
    graph, params = flatten(networks)
    trains = values_by_pattern(trainable, params, 0)
    if not any(trains.values()):
        raise ValueError(f"nothing to train: the rules {trainable} select no parameter")
    chosen = {path: jnp.asarray(array, jnp.float32) for path, array in params.items() if trains[path]}
    frozen = {path: array for path, array in params.items() if not trains[path]}
    return graph, place(chosen, mesh), place(frozen, mesh)


def start_state(
    updaters: Mapping[str, Updater], trainable: Mapping[str, Params], mesh: Mesh, restore: Restore | None
) -> TrainState:
    """The state before the first step, or the state in a checkpoint. Donates ``trainable``.

    Args:
        updaters: How each player is updated.
        trainable: The parameters of each player, fp32.
        mesh: Where the state lives; every array is created with its final sharding.
        restore: Reads the checkpoint; ``None``: there is none.
    """
    if restore is None:
        return initial_state(updaters, trainable, mesh)
    abstract = abstract_state(updaters, trainable, mesh)
    # Deleted explicitly: other references would keep these arrays on the device while the checkpoint is read.
    jax.tree.map(lambda array: array.delete(), trainable)
    step, items = restore(state_items(abstract))
    return state_from_items(step, items, abstract)


def initial_state(updaters: Mapping[str, Updater], trainable: Mapping[str, Params], mesh: Mesh) -> TrainState:
    """The state before the first step. Donates ``trainable``; every array is created with its final sharding."""
    begin = _beginning(updaters)
    shardings = state_shardings(jax.eval_shape(begin, trainable), mesh)
    return jax.jit(begin, donate_argnums=0, out_shardings=shardings)(trainable)


def abstract_state(updaters: Mapping[str, Updater], trainable: Mapping[str, Params], mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of ``initial_state``. ``trainable`` may be abstract."""
    shapes = jax.eval_shape(_beginning(updaters), trainable)
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def _beginning(updaters: Mapping[str, Updater]) -> Callable[[Mapping[str, Params]], TrainState]:
    def begin(trainable: Mapping[str, Params]) -> TrainState:
        players = {name: updaters[name].begin(params) for name, params in trainable.items()}
        return TrainState(step=jnp.zeros((), jnp.int32), players=players)

    return begin


def released_state(state: TrainState) -> TrainState:
    """The state with only ``Player.averaged``; the other arrays are deleted to free memory for the export."""
    players = {}
    for name, player in state.players.items():
        unused = [player.optimizer, player.trainable if player.ema else {}]
        jax.tree.map(lambda array: array.delete(), unused)
        players[name] = dataclasses.replace(player, optimizer=(), trainable=player.averaged, ema={})
    return dataclasses.replace(state, players=players)


def state_items(state: TrainState) -> Items:
    """The items that a checkpoint stores of a state."""
    return {
        name: {field: value for field, value in vars(player).items() if jax.tree.leaves(value)}
        for name, player in state.players.items()
    }


def state_from_items(step: int, items: Items, abstract: TrainState) -> TrainState:
    """Inverse of ``state_items``."""
    players = {name: dataclasses.replace(player, **items[name]) for name, player in abstract.players.items()}
    return TrainState(step=jax.device_put(np.int32(step), abstract.step.sharding), players=players)
