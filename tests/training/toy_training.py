"""A training run that takes seconds: a small network, noise that depends on the samples' keys, data by number.

As a script it is one process of a run (``trainer_processes_test.py``):

    python toy_training.py WORKDIR '{"steps": 20}' [PROCESSES INDEX PORT]
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from helios_jax.models.layers import linear
from helios_jax.models.lora import merge_lora
from helios_jax.parallel.mesh import readable
from helios_jax.training.batch import VideoBatch
from helios_jax.training.experiment import Experiment, Findings
from helios_jax.training.optimizer import AdamW
from helios_jax.training.params import flatten


class ToyNetworks(nnx.Module):
    """Three layers; at width 512 their kernels are large enough to be sharded."""

    def __init__(self, rngs: nnx.Rngs, width: int = 512) -> None:
        types = {"dtype": jnp.float32, "rngs": rngs}
        self.net = nnx.Dict(first=linear(12, width, **types), second=linear(width, width, **types))
        self.out = linear(width, 12, **types)

    def __call__(self, x: Any) -> Any:
        return self.out(jax.nn.silu(self.net.second(jax.nn.silu(self.net.first(x)))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyStart:
    """Fresh weights."""

    width: int = 512

    def networks(self, mesh: Any, key: Any) -> ToyNetworks:
        return ToyNetworks(nnx.Rngs(key), self.width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyMethod:
    """Denoises pixels; ``nan_at`` makes the loss of a batch with that first pixel not a number."""

    nan_at: int = -1

    def loss(
        self, networks: ToyNetworks, batch: VideoBatch, keys: Any, execution: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        x = batch.frames.reshape(len(batch.frames), -1).astype(jnp.float32) / 255
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        error = jnp.square(networks(x + 0.5 * noise) - x).mean(-1)
        bad = (batch.frames[:, 0, 0, 0, 0] == self.nan_at).any()
        return jnp.where(bad, jnp.nan, error.mean()), {"largest": error.mean()}


class ToyIterator:
    """Batch j is a function of j."""

    def __init__(self, batch_size: int, part: tuple[int, int], seed: int) -> None:
        self.batch_size, self.part, self.seed, self.position = batch_size, part, seed, 0

    def __next__(self) -> VideoBatch:
        generator = np.random.default_rng([self.seed, self.position])
        frames = generator.integers(0, 200, (self.batch_size, 1, 2, 2, 3), np.uint8)
        frames[:, 0, 0, 0, 0] = self.position % 200
        self.position += 1
        index, count = self.part
        share = self.batch_size // count
        return VideoBatch(frames=frames[index * share : (index + 1) * share])

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyData:
    """Random pixels."""

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> ToyIterator:
        return ToyIterator(batch_size, part, seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyProduct:
    """All parameters in one file."""

    def export(self, networks: ToyNetworks, folder: pathlib.Path) -> None:
        params = readable(flatten(merge_lora(networks))[1])
        if jax.process_index() == 0:
            np.savez(folder / "params.npz", **params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyValidation:
    """Writes the norm of all parameters, which all processes compute and the first one writes."""

    every: int = 5

    def prepare(self, product: Any, networks: Any, mesh: Any) -> Any:
        def validate(networks: ToyNetworks, folder: pathlib.Path) -> Findings:
            norm = float(jax.jit(optax.tree.norm)(flatten(networks)[1]))
            if jax.process_index() == 0:
                folder.mkdir(parents=True, exist_ok=True)  # a resumed run validates some steps again
                (folder / "norm.txt").write_text(repr(norm))
            return Findings(files=[folder / "norm.txt"], values={"norm": norm})

        return validate


def toy_experiment(**changes: Any) -> Experiment:
    """A run of 10 steps, each logged, with checkpoints after 4 and 8."""
    settings: dict[str, Any] = {
        "start": ToyStart(),
        "method": ToyMethod(),
        "data": ToyData(),
        "product": ToyProduct(),
        "optimizer": AdamW(learning_rate=1e-3, warmup_steps=5),
        "steps": 10,
        "batch_size": 8,
        "seed": 3,
        "log_every": 1,
        "checkpoint_every": 4,
    }
    return Experiment(**settings | changes)


if __name__ == "__main__":
    workdir, changes, *cluster = sys.argv[1:]
    if cluster:
        count, index, port = map(int, cluster)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", count, index, heartbeat_timeout_seconds=10)
    from helios_jax.training.trainer import train

    sys.exit(train(toy_experiment(validation=ToyValidation(), **json.loads(changes)), workdir))
