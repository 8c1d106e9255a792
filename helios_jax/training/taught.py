"""A student, its teacher and its own average: one player and the networks that judge it.

    batch -> microbatches -> mean gradient of method.loss(student; teacher, average) -> optimizer step -> moving average

One player is trained, as by ``descent``. Two more networks only judge it. The teacher is the network that training
starts from, without adapters: it shares all frozen parameters with the student, and of trained ones a copy is kept. The
average is the player's moving average, the one that is exported. Neither adds anything to a checkpoint.
"""

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from helios_jax.checkpoints.hub import local_folder
from helios_jax.models.lora import strip_lora
from helios_jax.models.tokenization import TextEncoder, Tokenizer
from helios_jax.parallel.execution import Execution
from helios_jax.parallel.memory import compiler_options
from helios_jax.parallel.mesh import readable
from helios_jax.training.descent import PLAYER, mean_gradient, report_counts, sample_keys, updater_of
from helios_jax.training.experiment import Experiment
from helios_jax.training.flops import NetworkCalls, forward_flops, training_flops
from helios_jax.training.metrics import Metrics
from helios_jax.training.networks import Networks
from helios_jax.training.params import Params, flatten, unflatten, values_by_pattern
from helios_jax.training.products import Pipeline
from helios_jax.training.sharding import place
from helios_jax.training.starts import load_part
from helios_jax.training.state import Items, Restore, TrainState, released_state, split_params, start_state, state_items
from helios_jax.typing import Array, Float, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judges:
    """The networks that a loss compares the student with, and does not train.

    Attributes:
        teacher: The network that training starts from.
        average: The student's moving average.
        negative: Embeddings of the negative prompt, for the teacher's guidance; ``None`` without it.
    """

    teacher: Networks
    average: Networks
    negative: Float[Array, "1 S E"] | None


@runtime_checkable
class Judged(Protocol):
    """A loss with judges; ``methods.consistency`` is one."""

    @property
    def guidance_scale(self) -> float:
        """Guidance of the teacher; 1: none."""
        ...

    @property
    def negative_prompt(self) -> str:
        """The negative prompt for guidance."""
        ...

    def loss(
        self,
        networks: Networks,
        judges: Judges,
        batch: Any,
        keys: Key[Array, " B"],
        execution: Execution,
        first_key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean loss of a batch, differentiable with respect to ``networks``, and what to log.

        Args:
            networks: The student.
            judges: The other networks.
            batch: A batch, or a microbatch of it.
            keys: One key per sample.
            execution: How blocks are run.
            first_key: The key of the first sample of the whole batch, see ``SharesDecisions``.
        """
        ...

    def network_calls(self, networks: Networks, batch: Any) -> NetworkCalls:
        """The student's calls for each sample; the average makes as many, the teacher twice as many with guidance."""
        ...


class Taught:
    """The training of a ``Judged`` in progress; see ``Running``."""

    def __init__(self, experiment: Experiment, method: Judged, mesh: Mesh, restore: Restore | None) -> None:
        if experiment.ema is None:
            raise ValueError("consistency distillation compares the student with its moving average: set ema")
        networks: Any = experiment.initial_networks(mesh)
        self._negative = None
        if method.guidance_scale > 1:
            self._negative = encode_negative(method.negative_prompt, experiment, networks, mesh)
        self._teacher_graph, teacher = flatten(strip_lora(networks))
        trains = values_by_pattern(experiment.trainable, flatten(networks)[1], 0)
        # Copies, because the state takes over the student's arrays, which may be these very ones.
        self._teacher = place({path: jnp.copy(array) for path, array in teacher.items() if trains[path]}, mesh)
        self._graph, trainable, self._frozen = split_params(networks, experiment.trainable, mesh)
        # Otherwise the parameters as loaded would stay in memory next to their fp32 copies.
        del networks, teacher
        report_counts(trainable, self._frozen, mesh)
        updater = updater_of(experiment, trainable)
        self._method = method
        self._state = start_state({PLAYER: updater}, {PLAYER: trainable}, mesh, restore)

        def loss(
            trainable: Params,
            state: TrainState,
            frozen: Params,
            teacher: Params,
            negative: Float[Array, "1 S E"] | None,
            first_key: Key[Array, ""],
            batch: Any,
            keys: Key[Array, " B"],
        ) -> tuple[Array, Metrics]:
            judges = Judges(
                teacher=self._teacher_of(frozen, teacher),
                average=unflatten(self._graph, state.players[PLAYER].ema | frozen),
                negative=negative,
            )
            student = unflatten(self._graph, trainable | frozen)
            value, metrics = method.loss(student, judges, batch, keys, experiment.execution, first_key)
            return value, {"loss": value, **metrics}

        def step(
            state: TrainState, frozen: Params, teacher: Params, negative: Float[Array, "1 S E"] | None, batch: Any
        ) -> tuple[TrainState, Metrics]:
            player = state.players[PLAYER]
            keys = sample_keys(experiment.seed, state.step, experiment.batch_size)
            given = player.trainable, state, frozen, teacher, negative, keys[0]
            gradient = functools.partial(jax.grad(loss, has_aux=True), *given)
            gradients, metrics = mean_gradient(gradient, batch, keys, experiment.accumulation, mesh)
            player, applied = updater.apply(player, gradients, metrics["loss"], average=True)
            return TrainState(step=state.step + 1, players={PLAYER: player}), metrics | applied

        # Donated and with fixed shardings for the reasons that ``descent`` gives.
        self._step = jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda array: array.sharding, self._state), None),
            compiler_options=compiler_options(experiment.remat),
        )

    def step(self, batch: Any, number: int) -> Metrics:
        """See ``Running``."""
        self._state, metrics = self._step(self._state, self._frozen, self._teacher, self._negative, batch)
        return metrics

    def items(self) -> Items:
        """See ``Running``."""
        return state_items(self._state)

    def frozen(self) -> Params:
        """See ``Running``; the teacher's own parameters have paths that begin with "teacher/"."""
        return self._frozen | {f"teacher/{path}": array for path, array in self._teacher.items()}

    def networks(self) -> nnx.Module:
        """See ``Running``."""
        return unflatten(self._graph, self._state.players[PLAYER].averaged | self._frozen)

    def release(self) -> None:
        """See ``Running``."""
        self._state = released_state(self._state)
        self._teacher = {}

    def flops(self, batch: Any) -> float | None:
        """See ``Running``: the student's step, and the forward passes of teacher and average."""
        trainable = self._state.players[PLAYER].trainable
        networks = unflatten(self._graph, trainable | self._frozen)
        student = training_flops(self._method, networks, batch, trainable, self._frozen)
        assert student is not None, "the method counts its calls"
        forward = forward_flops(networks.transformer.config, self._method.network_calls(networks, batch))
        calls = 2 if self._negative is None else 3
        return student + calls * (forward.weights + forward.attention)

    def _teacher_of(self, frozen: Params, teacher: Params) -> Networks:
        """The teacher, from frozen parameters and its own."""
        adapters = ("/lora_a", "/lora_b")
        shared = {path: array for path, array in frozen.items() if not path.endswith(adapters)}
        networks: Any = unflatten(self._teacher_graph, shared | teacher)
        return networks


def encode_negative(prompt: str, experiment: Experiment, networks: Networks, mesh: Mesh) -> Float[Array, "1 S E"]:
    """Embeddings of a negative prompt, as long as the texts of the data.

    The text encoder is that of the networks, or else that of the product's ``parts``, which is not kept.

    Raises:
        ValueError: The product has no ``parts``, or the data does not say how long its texts are.
        FileNotFoundError: There is no text encoder or tokenizer.
    """
    product, tokens = experiment.product, getattr(experiment.data, "tokens", None)
    if not isinstance(product, Pipeline) or tokens is None:
        raise ValueError(
            "guidance needs a negative prompt: take a product of the kind Pipeline, whose parts include a text "
            "encoder, and data with texts; or set method.guidance_scale=1"
        )
    encoder = vars(networks).get("text_encoder") or load_part(product.parts, "text_encoder", product.dtype, mesh)
    tokenizer = Tokenizer.from_folder(local_folder(product.parts))
    embeds = np.asarray(readable(TextEncoder.create(encoder, tokenizer)([prompt], tokens)))
    return jax.device_put(embeds, NamedSharding(mesh, PartitionSpec()))
