"""Settings that cannot work are refused when they are built, by name. (Wrong types: ``overrides_test.py``.)"""

import dataclasses
import math
import types

import pytest
from toy_training import toy_experiment

from helios_jax.training.datasets import Latents, MovingShapes
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import Experiment, Lora
from helios_jax.training.optimizer import AdamW
from helios_jax.training.sharding import MeshShape, check_batch


def adamw(**changes):
    return AdamW(**{"learning_rate": 1e-3} | changes)


def latents(**changes):
    return Latents(**{"folders": ("a",)} | changes)


def shapes(**changes):
    return MovingShapes(**{"scenes": 4} | changes)


def lora(**changes):
    return Lora(**{"rank": 4} | changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoValidation:
    """Validates nothing."""

    every: int

    def prepare(self, product, networks, mesh):
        raise NotImplementedError


NAN, INF = math.nan, math.inf
CASES = [
    *((toy_experiment, "steps", value) for value in (0, -1, 2**31)),
    *((toy_experiment, name, 0) for name in ("batch_size", "accumulation", "log_every", "checkpoint_every")),
    *((toy_experiment, name, 0) for name in ("keep_checkpoints", "max_skipped")),
    *((toy_experiment, "seed", value) for value in (-1, 2**32)),
    (toy_experiment, "keep_every", -1),
    (toy_experiment, "trainable", (("(", 1),)),
    (toy_experiment, "trainable", ((".*", 0.5),)),
    (toy_experiment, "validation", NoValidation(every=0)),
    *((adamw, "learning_rate", value) for value in (0.0, -1.0, NAN, INF)),
    *((adamw, "eps", value) for value in (0.0, -1e-8, NAN)),
    *((adamw, "weight_decay", value) for value in (-1.0, NAN, INF)),
    *((adamw, "clip_norm", value) for value in (-1.0, NAN)),
    *((adamw, "warmup_steps", value) for value in (-1, 2**31)),
    (adamw, "schedule_steps", -1),
    *((adamw, "betas", value) for value in ((0.9, 1.0), (-0.1, 0.9), (NAN, 0.9))),
    (adamw, "lr_factors", (("(", 1.0),)),
    (adamw, "decay_factors", ((".*", NAN),)),
    (adamw, "decay_factors", ((".*", -1.0),)),
    *((lora, "rank", value) for value in (0, -4)),
    *((lora, "alpha", value) for value in (-1.0, NAN)),
    (lora, "targets", ("[",)),
    *((Ema, "decay", value) for value in (1.0, -0.1, NAN)),
    *((Ema, "start", value) for value in (-1, -7)),
    *((MeshShape, "fsdp", value) for value in (-2, -8)),
    (latents, "folders", ()),
    *((latents, "ratios", value) for value in ((0.0,), (-1.0,), (NAN,), (INF,), (1.0, 2.0))),
    (latents, "drop_text", NAN),
    *((latents, name, 0) for name in ("tokens", "threads")),
    *((shapes, name, 0) for name in ("scenes", "frames", "height", "width", "processes", "threads")),
    (shapes, "length", 5),
    (shapes, "num_shapes", -1),
]


@pytest.mark.parametrize(("settings", "name", "value"), CASES)
def test_impossible_settings_are_refused_by_name(settings, name, value):
    with pytest.raises(ValueError, match=name) as caught:
        settings(**{name: value})
    assert len(str(caught.value).splitlines()) == 1


def test_the_default_seed_and_the_largest_are_taken():
    assert isinstance(toy_experiment(seed=2**32 - 1), Experiment)


def mesh(data, fsdp):
    return types.SimpleNamespace(shape={"data": data, "fsdp": fsdp, "context": 1})


def test_microbatches_must_divide_over_the_devices():
    for batch, accumulation, parts in ((8, 1, (1, 8)), (8, 2, (2, 2)), (128, 16, (1, 8)), (3, 3, (1, 1))):
        check_batch.__wrapped__(batch, accumulation, mesh(*parts))
    with pytest.raises(ValueError, match=r"microbatch of 4 samples \(batch_size=8, accumulation=2\).* over 8 devices"):
        check_batch.__wrapped__(8, 2, mesh(2, 4))
    with pytest.raises(ValueError, match=r"data=1 x fsdp=8\); accumulation can be 2, 4, 8, 16$"):
        check_batch.__wrapped__(128, 128, mesh(1, 8))
    with pytest.raises(ValueError, match="batch_size must be a multiple of 8"):
        check_batch.__wrapped__(12, 3, mesh(1, 8))
