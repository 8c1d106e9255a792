"""Procedures: how networks are trained. The trainer's loop knows only these two roles, no losses or optimizers.

    Procedure   settings; ``start`` loads the networks and returns a
    Running     the players' state on the devices, which ``step`` advances by one batch

A player is a set of parameters with an optimizer of its own (``state.Player``). ``descent.Descent`` has one player and
one loss. A procedure with several players, such as a generator and a critic, decides on the host which of them a step
updates; its metrics are then keyed by player ("critic/loss") and need not be the same at every step.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jax.sharding import Mesh

from helios_jax.training.metrics import Metrics
from helios_jax.training.params import Params
from helios_jax.training.state import Restore


@runtime_checkable
class Running(Protocol):
    """A procedure in progress."""

    def step(self, batch: Any, number: int) -> Metrics:
        """Advances the state by one batch; returns as soon as the work is dispatched.

        Args:
            batch: A global batch, on the devices.
            number: Number of the step in the run, from 1. Decisions on the host depend on it alone, so a resumed run
                makes the same ones.

        Returns:
            Scalars by name. For every player that was updated: its "loss", and what ``Updater.apply`` returns. The
            names begin with "<player>/" if there are several players.
        """
        ...

    def items(self) -> Mapping[str, Any]:
        """The contents of a checkpoint, by player: everything that changes while the procedure runs."""
        ...

    def frozen(self) -> Params:
        """The parameters that are only read, by path; checkpoints omit them."""
        ...

    def networks(self) -> nnx.Module:
        """The networks to validate and to export, with moving averages where there are any."""
        ...

    def release(self) -> None:
        """Frees everything that ``networks`` does not need, such as the optimizer's state. No step can follow."""
        ...

    def flops(self, batch: Any) -> float | None:
        """Operations of a step per sample, for the utilisation of the hardware; ``None`` if unknown."""
        ...


@runtime_checkable
class Procedure(Protocol):
    """Settings of a way to train. Implementations are frozen dataclasses."""

    def start(self, experiment: Any, mesh: Mesh, restore: Restore | None) -> Running:
        """Loads the networks and creates the players' state, or reads it from a checkpoint.

        Args:
            experiment: The ``Experiment``, in which a procedure is a field.
            mesh: Where networks and state live.
            restore: Reads the newest checkpoint; ``None``: there is none.

        Raises:
            ValueError: The settings cannot work, or the checkpoint does not fit them.
            FileNotFoundError: Weights are missing.
        """
        ...
