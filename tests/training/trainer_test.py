"""The trainer on a toy network: accumulation, freezing, guards, resuming."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toy_training import ToyData, ToyIterator, ToyMethod, ToyNetworks, toy_experiment

from helios_jax.training.descent import PLAYER, procedure_of, sample_keys
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import Findings, Lora
from helios_jax.training.metrics import read_metrics
from helios_jax.training.params import flatten
from helios_jax.training.preemption import PREEMPTED
from helios_jax.training.sharding import MeshShape, put_batch
from helios_jax.training.trainer import train


def losses(workdir):
    return {step: record["loss"] for step, record in read_metrics(workdir / "metrics.jsonl").items()}


def product(workdir, step=10):
    return dict(np.load(workdir / "product" / str(step) / "params.npz"))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run of 10 steps that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train(toy_experiment(), workdir) == 0
    return workdir


def test_losses_are_those_of_a_loop_written_out(whole_run):
    """An independent loop: optax's AdamW on jax.grad of the method, without any of the trainer."""
    weights, _ = jax.random.split(jax.random.key(3))
    graph, state = nnx.split(ToyNetworks(nnx.Rngs(weights)))

    @jax.jit
    def value_and_gradient(state, batch, keys):
        return jax.value_and_grad(lambda state: ToyMethod().loss(nnx.merge(graph, state), batch, keys)[0])(state)

    warmup = optax.linear_schedule(0.0, 1e-3, 5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(warmup, weight_decay=1e-4))
    kept, data = optimizer.init(state), ToyIterator(8, (0, 1), 3)
    expected = {}
    for step in range(10):
        keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(3), step), i) for i in range(8)]
        batch = jax.tree.map(jnp.asarray, next(data))
        value, gradient = value_and_gradient(state, batch, jnp.stack(keys))
        updates, kept = optimizer.update(gradient, kept, state)
        state = optax.apply_updates(state, updates)
        expected[step + 1] = float(value)
    found = losses(whole_run)
    assert found.keys() == expected.keys()
    assert [found[step] for step in found] == pytest.approx([expected[step] for step in found], rel=2e-5)


@pytest.mark.parametrize("accumulation", [2, 8])
def test_accumulation_equals_the_big_batch(whole_run, tmp_path, accumulation):
    assert train(toy_experiment(accumulation=accumulation), tmp_path) == 0
    for name, array in product(whole_run).items():
        np.testing.assert_allclose(product(tmp_path)[name], array, rtol=0, atol=2e-5, err_msg=name)
    assert losses(tmp_path) == pytest.approx(losses(whole_run), rel=1e-4)


def test_only_what_rules_select_is_trained(whole_run, tmp_path):
    rules = (("net/second/.*", 0), (".*/kernel", 1))
    train(toy_experiment(trainable=rules, steps=3), tmp_path)
    start = flatten(toy_experiment().initial_networks(MeshShape().build()))[1]
    for name, array in product(tmp_path, 3).items():
        moved = bool(np.abs(array - start[name]).max())
        assert moved == (name.endswith("kernel") and "second" not in name), name


def test_adapters_are_trained_and_folded_in(tmp_path):
    lora = Lora(rank=4, targets=("net/.*",))
    train(toy_experiment(lora=lora, trainable=((".*lora_.", 1),), steps=3), tmp_path)
    start = flatten(toy_experiment().initial_networks(MeshShape().build()))[1]
    found = product(tmp_path, 3)
    assert found.keys() == start.keys()
    for name, array in found.items():
        change = array - np.asarray(start[name])
        if name in ("net/first/kernel", "net/second/kernel"):
            assert np.linalg.matrix_rank(change, tol=1e-6 * np.abs(array).max()) == 4
        else:
            assert not change.any(), name


def test_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        train(toy_experiment(trainable=((".*", 0),)), tmp_path)


def test_batches_that_do_not_fit_the_mesh_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not use all of 1 devices"):
        train(toy_experiment(mesh=MeshShape(data=2, fsdp=1)), tmp_path)


def test_an_update_that_is_not_finite_is_left_out(whole_run, tmp_path, capsys):
    assert train(toy_experiment(method=ToyMethod(nan_at=4)), tmp_path) == 0  # the batch of step 5
    assert "not finite at step 5: update left out" in capsys.readouterr().out
    record = read_metrics(tmp_path / "metrics.jsonl")
    assert [record[step]["skipped"] for step in range(1, 11)] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    found, whole = losses(tmp_path), losses(whole_run)
    assert [found[step] for step in range(1, 5)] == [whole[step] for step in range(1, 5)]
    assert np.isnan(found[5])
    assert all(np.isfinite(found[step]) for step in range(6, 11))


def test_training_can_stop_where_it_is_not_finite(tmp_path):
    with pytest.raises(FloatingPointError, match="at step 5; a lower learning rate"):
        train(toy_experiment(method=ToyMethod(nan_at=4), on_nan="stop"), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventfulData(ToyData):
    """Data that do something before batch number ``at``."""

    at: int
    event: str

    def batches(self, batch_size, part, seed):
        iterator = super().batches(batch_size, part, seed)
        return EventfulIterator(iterator, self.at, self.event)


class EventfulIterator:
    def __init__(self, iterator, at, event):
        self.iterator, self.at, self.event = iterator, at, event

    def __next__(self):
        if self.iterator.position == self.at:
            if self.event == "crash":
                raise RuntimeError("power cut")
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self.iterator)

    def get_state(self):
        return self.iterator.get_state()

    def set_state(self, state):
        self.iterator.set_state(state)


def test_a_run_that_was_cut_off_resumes_bit_for_bit(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr("helios_jax.training.trainer.as_json", lambda experiment: {"run": "toy"})
    with pytest.raises(RuntimeError, match="power cut"):
        train(toy_experiment(data=EventfulData(at=6, event="crash")), tmp_path)
    assert train(toy_experiment(), tmp_path) == 0
    assert losses(tmp_path) == losses(whole_run)
    for name, array in product(whole_run).items():
        np.testing.assert_array_equal(product(tmp_path)[name], array, err_msg=name)


def test_sigterm_saves_and_sets_the_exit_code(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr("helios_jax.training.trainer.as_json", lambda experiment: {"run": "toy"})
    before = signal.getsignal(signal.SIGTERM)
    assert train(toy_experiment(data=EventfulData(at=5, event="sigterm")), tmp_path) == PREEMPTED == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert "6" in {path.name for path in (tmp_path / "checkpoints").iterdir()}  # an unscheduled one
    assert not (tmp_path / "product").exists()
    assert train(toy_experiment(), tmp_path) == 0
    assert losses(tmp_path) == losses(whole_run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamsValidation:
    """Records the parameters that it is given."""

    every: int = 1
    seen: dict = dataclasses.field(default_factory=dict)

    def prepare(self, product, networks, mesh):
        def validate(networks, folder):
            self.seen[int(folder.name)] = jax.tree.map(np.asarray, flatten(networks)[1])
            return Findings(files=[folder], values={"step": float(folder.name)})

        return validate


def test_moving_averages_are_validated_resumed_and_released(tmp_path, monkeypatch):
    """They follow e <- d e + (1 - d) p, for the parameters p of a run without averages."""
    monkeypatch.setattr("helios_jax.training.trainer.as_json", lambda experiment: {"run": "toy"})
    plain, averaged = ParamsValidation(), ParamsValidation()
    assert train(toy_experiment(steps=6, validation=plain), tmp_path / "plain") == 0
    for steps in (3, 6):
        averages = {"ema": Ema(decay=0.5, start=2), "validation": averaged}
        assert train(toy_experiment(steps=steps, **averages), tmp_path / "averaged") == 0
    records = read_metrics(tmp_path / "plain" / "metrics.jsonl")
    assert [(record["validation/step"], "loss" in record) for _, record in sorted(records.items())] == [
        (step, True) for step in range(1, 7)
    ]
    expected = plain.seen[3]  # n = 0
    for step, decay in ((4, 2 / 11), (5, 3 / 12), (6, 4 / 13)):
        expected = {name: decay * expected[name] + (1 - decay) * plain.seen[step][name] for name in expected}
        for name, array in averaged.seen[step].items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6, err_msg=name)
    for name, array in product(tmp_path / "averaged", 6).items():
        np.testing.assert_array_equal(array, averaged.seen[6][name])
        assert np.abs(array - plain.seen[6][name]).max() > 1e-5


def test_a_step_copies_no_frozen_parameters_and_donates_the_rest():
    experiment = toy_experiment(trainable=(("out/.*", 1),))
    mesh = experiment.mesh.build()
    running = procedure_of(experiment).start(experiment, mesh, None)

    def frozen_pointers():
        params = flatten(running.networks())[1]
        return {name: array.unsafe_buffer_pointer() for name, array in params.items() if not name.startswith("out/")}

    before, old = frozen_pointers(), running.items()[PLAYER]
    assert sorted(before) == ["net/first/bias", "net/first/kernel", "net/second/bias", "net/second/kernel"]
    running.step(put_batch(next(ToyIterator(8, (0, 1), 0)), 8, mesh), 1)
    assert frozen_pointers() == before
    assert all(array.is_deleted() for array in jax.tree.leaves(old))


def test_keys_depend_on_step_and_sample_alone():
    keys = jax.random.key_data(sample_keys(7, 11, 4))
    again = jax.random.key_data(sample_keys(7, jnp.int32(11), 8))[:4]
    np.testing.assert_array_equal(keys, again)
    by_hand = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 11), 2)
    np.testing.assert_array_equal(keys[2], jax.random.key_data(by_hand))
    assert not np.array_equal(keys[0], keys[1])


def test_rate_and_memory_are_reported(whole_run):
    record = read_metrics(whole_run / "metrics.jsonl")
    assert "samples_per_second" not in record[1]  # the first step compiles
    assert record[2]["samples_per_second"] > 0
    assert record[10]["memory_gib"] > 0.05
    assert [record[step]["learning_rate"] for step in (1, 2, 6, 10)] == pytest.approx([0, 2e-4, 1e-3, 1e-3])
    assert list(whole_run.glob("tensorboard/events*"))
