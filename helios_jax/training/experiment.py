"""What an experiment file decides: frozen settings, each of which knows how to make its part of a run.

Roles with several players are protocols: ``Start`` (the weights to begin with, in ``starts``), ``Data``, ``Method``
(what is learnt, in ``methods``), ``Product`` (what the result is saved as, in ``products``) and ``Validation``.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
from flax import nnx
from jax.sharding import Mesh

from helios_jax.models.lora import add_lora
from helios_jax.training.checkpoints import Resumable
from helios_jax.training.ema import Ema
from helios_jax.training.methods import Method
from helios_jax.training.optimizer import AdamW
from helios_jax.training.params import Rules
from helios_jax.training.sharding import MeshShape
from helios_jax.typing import Array, Key


@runtime_checkable
class Start(Protocol):
    """The weights that training starts from."""

    def networks(self, mesh: Mesh, key: Key[Array, ""]) -> nnx.Module:
        """The networks that train together, on the mesh; ``key`` is the source of what is drawn.

        Raises:
            FileNotFoundError: Weights are missing.
            ValueError: They cannot be used.
        """
        ...


@runtime_checkable
class Data(Protocol):
    """What is trained on."""

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Resumable:
        """An endless iterator over this process's share of the batches.

        Args:
            batch_size: Samples of a global batch.
            part: (index, number of parts): which part of every batch, in order, is wanted.
            seed: Seed of the order.
        """
        ...


# Networks are Any in the following roles, since each player takes only the networks that it knows how to use.


@runtime_checkable
class Product(Protocol):
    """What trained networks are saved as."""

    def export(self, networks: Any, folder: pathlib.Path) -> None:
        """Writes them, adapters folded in, into ``folder``, which is new."""
        ...


@runtime_checkable
class Validation(Protocol):
    """What is looked at while training runs."""

    @property
    def every(self) -> int:
        """Steps between two looks."""
        ...

    def prepare(self, product: Product, networks: Any, mesh: Mesh) -> "Validator":
        """Loads what it needs beside networks of this kind; keeps none of theirs."""
        ...


@runtime_checkable
class Validator(Protocol):
    """Ready to look at networks."""

    def __call__(self, networks: Any, folder: pathlib.Path) -> Sequence[pathlib.Path]:
        """Writes files that show what the networks do into ``folder``, and returns their paths."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters to train.

    Attributes:
        rank: Rank r.
        alpha: Scale times r; 0 stands for ``rank``.
        targets: Patterns of layers by path, such as "transformer/blocks/attn1/to_qkv".
        excludes: Patterns of layers to leave out.
    """

    rank: int
    alpha: float = 0.0
    targets: tuple[str, ...] = ("transformer/.*",)
    excludes: tuple[str, ...] = ()

    def add[M: nnx.Module](self, networks: M, key: Key[Array, ""]) -> M:
        """The networks with adapters."""
        alpha = self.alpha or self.rank
        options = {"targets": self.targets, "excludes": self.excludes}
        return add_lora(networks, rank=self.rank, alpha=alpha, key=key, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A training run.

    Attributes:
        start: The weights to begin with.
        method: What is learnt.
        data: What it is learnt from.
        product: What the result is saved as.
        optimizer: The optimizer.
        steps: Updates to make.
        batch_size: Samples per update, over all devices.
        accumulation: Microbatches that a batch is cut into, one after the other, to save memory.
        seed: Seed of fresh weights, of the order of the data, and of every draw of the method.
        lora: Adapters to put on; ``None``: none.
        trainable: Which parameters are trained, 1 or 0 by path; those that no rule matches are not.
        ema: Moving average of the trained parameters; ``None``: none.
        mesh: How devices share the work.
        validation: What to look at while training; ``None``: nothing.
        on_nan: What happens when loss or gradient is not finite: "skip" the update, or "stop". Parameters stay as they
            were in either case.
        log_every: Steps between two lines of the log, which are means over those steps.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: How many of the newest are kept.
        keep_every: Checkpoints of steps that are multiples of this are kept for good; 0: none.
    """

    start: Start
    method: Method
    data: Data
    product: Product
    optimizer: AdamW
    steps: int
    batch_size: int
    accumulation: int = 1
    seed: int = 0
    lora: Lora | None = None
    trainable: Rules = ((".*", 1),)
    ema: Ema | None = None
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    validation: Validation | None = None
    on_nan: Literal["skip", "stop"] = "skip"
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    keep_every: int = 0

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep_checkpoints")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of accumulation={self.accumulation}")

    def initial_networks(self, mesh: Mesh) -> nnx.Module:
        """The networks that training begins with, adapters included."""
        weights, adapters = jax.random.split(jax.random.key(self.seed))
        networks = self.start.networks(mesh, weights)
        return networks if self.lora is None else self.lora.add(networks, adapters)


MAY_CHANGE = (
    "steps",
    "mesh",
    "validation",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "on_nan",
    "accumulation",
    "method.remat",
)
"""Settings that a resumed run may change: they do not decide what is trained (``steps``: when the learning rate is
constant)."""
