"""The settings in an experiment file; they are frozen, and each builds its part of a run.

Roles with several implementations are protocols: ``Start`` (the weights to begin with, in ``starts``), ``Data`` (in
``datasets``), ``Method`` (a loss, in ``methods``) or ``Procedure`` (its own way to train), ``Product`` (what the
result is saved as, in ``products``) and ``Validation``.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
from flax import nnx
from jax.sharding import Mesh

from helios_jax.models.lora import add_lora
from helios_jax.parallel.execution import Execution, Scanned
from helios_jax.parallel.memory import Remat
from helios_jax.training.checkpoints import Resumable
from helios_jax.training.ema import Ema
from helios_jax.training.methods import Method
from helios_jax.training.optimizer import MOST_STEPS, AdamW
from helios_jax.training.params import Rules, check_pattern, check_rules
from helios_jax.training.procedure import Procedure
from helios_jax.training.sharding import MeshShape
from helios_jax.typing import Array, Key
from helios_jax.user_input import finite_number, whole_number


@runtime_checkable
class Start(Protocol):
    """The weights that training starts from."""

    def networks(self, mesh: Mesh, key: Key[Array, ""]) -> nnx.Module:
        """The networks that train together, on the mesh.

        Args:
            mesh: Where the parameters live.
            key: For random weights.

        Raises:
            FileNotFoundError: Weights are missing.
            ValueError: The weights cannot be used.
        """
        ...


@runtime_checkable
class Data(Protocol):
    """The training data."""

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Resumable:
        """An endless iterator over this process's share of the batches.

        Args:
            batch_size: Samples of a global batch.
            part: (index, number of parts): which contiguous part of every batch to return.
            seed: Seed of the order.
        """
        ...


# Networks are Any in the following roles, since each player takes only the networks that it knows how to use.


@runtime_checkable
class Product(Protocol):
    """The form that trained networks are saved in."""

    def export(self, networks: Any, folder: pathlib.Path) -> None:
        """Merges adapters and saves the networks to ``folder``, which is new and empty.

        Every process calls this. Arrays may be spread over their devices (``parallel.mesh.readable`` gathers one), and
        only the first process may write.
        """
        ...


@runtime_checkable
class NeedsFiles(Protocol):
    """A product or a validation that needs files in addition to the trained networks."""

    def check(self, start: Start) -> None:
        """Checks that they are there, before anything is trained.

        Raises:
            FileNotFoundError: Something is missing.
            ValueError: Something is damaged.
        """
        ...


@runtime_checkable
class Validation(Protocol):
    """Periodic validation."""

    @property
    def every(self) -> int:
        """Steps between validations."""
        ...

    def prepare(self, product: Product, networks: Any, mesh: Mesh) -> "Validator":
        """Loads what validation needs in addition to networks of this kind, and keeps no reference to their arrays."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """The result of a validation.

    Attributes:
        files: What it wrote. Every process returns the paths; the first one has written them.
        values: Scalars by name, without the prefix "validation/" that the log gives them; only the first process needs
            to have them.
    """

    files: Sequence[pathlib.Path]
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Validator(Protocol):
    """A validation that has loaded what it needs."""

    def __call__(self, networks: Any, folder: pathlib.Path) -> Findings:
        """Writes files to ``folder`` that show what the networks produce, and measures it."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters (LoRA) to add to the networks.

    Attributes:
        rank: Rank r.
        alpha: Scale times r; 0: ``rank``, a scale of 1.
        targets: Patterns of layers by path, such as "transformer/blocks/attn1/to_qkv".
        excludes: Patterns of layers to leave out.
    """

    rank: int
    alpha: float = 0.0
    targets: tuple[str, ...] = ("transformer/.*",)
    excludes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole_number(self.rank, "lora.rank", at_least=1)
        finite_number(self.alpha, "lora.alpha", at_least=0)
        for name in ("targets", "excludes"):
            for pattern in getattr(self, name):
                check_pattern(pattern, f"lora.{name}")

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
        method: The loss to minimise, or a ``Procedure``, which defines its own training step.
        data: The training data.
        product: The form that the result is saved in.
        optimizer: The optimizer.
        steps: Steps to train for.
        batch_size: Samples per step, over all devices.
        accumulation: Number of microbatches that a batch is processed in, one after the other, to save memory.
        remat: What the backward pass recomputes, to save memory.
        seed: Seed of random weights, of the order of the data, and of every draw of the method.
        lora: Adapters to add; ``None``: none.
        trainable: Which parameters are trained, 1 or 0 by path; 0 where no rule matches.
        ema: Moving average of the trained parameters; ``None``: none.
        mesh: How devices share the work.
        validation: Periodic validation; ``None``: none.
        on_nan: What to do when loss, gradient or update is not finite: "skip" the update, or "stop". Parameters stay
            unchanged in either case.
        max_skipped: Updates skipped in a row after which the run stops. A bad record or an unlucky draw affects only
            a step or two. Even if every other batch were bad, 20 in a row would occur once in two million steps.
        log_every: Steps between two lines of the log; each line has the means over these steps.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: How many of the newest checkpoints are kept.
        keep_every: Checkpoints of steps that are multiples of this are kept for good; 0: none.
    """

    start: Start
    method: Method | Procedure
    data: Data
    product: Product
    optimizer: AdamW
    steps: int
    batch_size: int
    accumulation: int = 1
    remat: Remat = "none"
    seed: int = 0
    lora: Lora | None = None
    trainable: Rules = ((".*", 1),)
    ema: Ema | None = None
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    validation: Validation | None = None
    on_nan: Literal["skip", "stop"] = "skip"
    max_skipped: int = 20
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    keep_every: int = 0

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep_checkpoints")
        for name in (*positive, "max_skipped"):
            whole_number(getattr(self, name), name, at_least=1, at_most=MOST_STEPS)
        whole_number(self.keep_every, "keep_every", at_least=0)
        # JAX would keep only the low 32 bits of a larger seed, so two seeds could give the same draws.
        whole_number(self.seed, "seed", at_least=0, at_most=2**32 - 1)
        if self.validation is not None:
            whole_number(self.validation.every, "validation.every", at_least=1)
        if self.on_nan not in ("skip", "stop"):
            raise ValueError(f"on_nan={self.on_nan!r} must be 'skip' or 'stop'")
        check_rules(self.trainable, "trainable", switch=True)
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of accumulation={self.accumulation}")
        layouts = {name: found for name in LAYOUTS if (found := _nested(self, name)) is not None}
        if len(set(layouts.values())) > 1:
            texts = "; ".join(f"{name}={layout}" for name, layout in layouts.items())
            raise ValueError(f"one layout of the context is needed in data, training and product, not {texts}")

    @property
    def execution(self) -> Execution:
        """How the transformer's blocks are run in training."""
        return Execution(layers=Scanned(remat=self.remat))

    def initial_networks(self, mesh: Mesh) -> nnx.Module:
        """The networks that training begins with, including adapters."""
        weights, adapters = jax.random.split(jax.random.key(self.seed))
        networks = self.start.networks(mesh, weights)
        return networks if self.lora is None else self.lora.add(networks, adapters)


LAYOUTS = ("method.context.layout", "method.layout", "data.layout", "product.config.history")
"""Settings that hold the layout of the context, where an experiment has them; all of them are the same."""


def _nested(settings: Any, name: str) -> Any:
    """The setting with this dotted name, or ``None``."""
    for part in name.split("."):
        settings = getattr(settings, part, None)
    return settings


MAY_CHANGE = (
    "steps",
    "mesh",
    "validation",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "on_nan",
    "max_skipped",
    "product",
    "data.on_error",
    "data.in_memory",
    "data.threads",
    "accumulation",
    "remat",
    # The former name of the setting ``remat``: runs that saved it under this name can still be resumed.
    "method.remat",
)
"""Settings that a resumed run may change, because they do not affect what is trained. (``steps`` does if a cosine
schedule has no length; see ``run_folder``.)"""
