"""Everything that a training step reads and writes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from helios_jax.training.ema import Ema
from helios_jax.training.params import Params, Rules, flatten, settings
from helios_jax.training.sharding import place, state_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of training; a pytree of arrays, or of their shapes or shardings.

    Attributes:
        step: Updates made, int32.
        trainable: Parameters that are trained, fp32.
        frozen: The others, in the dtype that they were loaded in.
        optimizer: What the optimizer keeps.
        ema: Moving averages of ``trainable``; empty without.
    """

    step: Any
    trainable: Params
    frozen: Params
    optimizer: Any
    ema: Params

    @property
    def params(self) -> Params:
        """All parameters of the networks."""
        return self.trainable | self.frozen

    @property
    def averaged_params(self) -> Params:
        """The parameters to sample with: the moving averages if there are any."""
        return (self.ema or self.trainable) | self.frozen


def split_params(networks: nnx.Module, trainable: Rules, mesh: Mesh) -> tuple[nnx.GraphDef, Params, Params]:
    """Static structure, trained parameters (fp32) and frozen parameters of networks, on the mesh.

    Raises:
        ValueError: ``trainable`` (default 0) selects nothing, or has a rule without effect.
    """
    graph, params = flatten(networks)
    trains = settings(trainable, params, 0)
    if not any(trains.values()):
        raise ValueError(f"nothing to train: the rules {trainable} select no parameter")
    chosen = {path: jnp.asarray(array, jnp.float32) for path, array in params.items() if trains[path]}
    frozen = {path: array for path, array in params.items() if not trains[path]}
    return graph, place(chosen, mesh), place(frozen, mesh)


def abstract_state(
    trainable: Params, frozen: Params, optimizer: optax.GradientTransformation, ema: Ema | None, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of a state. ``frozen`` is put in as it is; ``trainable`` may be abstract."""
    shapes = jax.eval_shape(_beginning(optimizer, ema), trainable)
    state = jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )
    return dataclasses.replace(state, frozen=frozen)


def initial_state(
    trainable: Params, frozen: Params, optimizer: optax.GradientTransformation, ema: Ema | None, mesh: Mesh
) -> TrainState:
    """The state before the first step, which takes ``trainable`` over; the rest is made where it will live."""
    begin = _beginning(optimizer, ema)
    shardings = state_shardings(jax.eval_shape(begin, trainable), mesh)
    return dataclasses.replace(jax.jit(begin, donate_argnums=0, out_shardings=shardings)(trainable), frozen=frozen)


def _beginning(optimizer: optax.GradientTransformation, ema: Ema | None) -> Callable[[Params], TrainState]:
    def begin(trainable: Params) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            frozen={},
            optimizer=optimizer.init(trainable),
            ema=trainable if ema else {},
        )

    return begin
