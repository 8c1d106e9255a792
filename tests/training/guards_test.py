"""What keeps a run from going wrong without a word: numbers, weights, signals, rivals."""

import dataclasses
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toy_training import ToyData, ToyIterator, ToyMethod, ToyNetworks, ToyStart, toy_experiment

from helios_jax.safe_files import claimed
from helios_jax.training.descent import PLAYER, procedure_of
from helios_jax.training.ema import Ema
from helios_jax.training.log import Log
from helios_jax.training.metrics import read_metrics
from helios_jax.training.optimizer import updates_applied
from helios_jax.training.params import flatten
from helios_jax.training.preemption import PREEMPTED
from helios_jax.training.sharding import MeshShape
from helios_jax.training.trainer import export, train
from helios_jax.training.updates import Updater

# Small, so that programs compile quickly.
SMALL = {"start": ToyStart(width=4)}


def updater(ema=None):
    adamw = toy_experiment().optimizer  # warm-up over 5 steps
    return Updater(optimizer=adamw.build(["a"], 10), learning_rates=adamw.learning_rates(10), ema=ema)


@pytest.fixture(scope="module")
def apply():
    used = updater(Ema())
    return used, jax.jit(lambda player, gradient, loss: used.apply(player, {"a": gradient}, loss, average=True))


def test_the_logged_learning_rate_is_the_applied_one(apply):
    used, step = apply
    player, good, bad = used.begin({"a": jnp.ones(3)}), jnp.ones(3), jnp.full(3, jnp.nan)
    logged = []
    for gradient in (good, bad, bad, good, good):
        before = player.trainable["a"]
        player, metrics = step(player, gradient, jnp.float32(1))
        logged.append(float(metrics["learning_rate"]))
        # With a constant gradient Adam's update is the learning rate (and the decay a ten-thousandth of it).
        moved = float(jnp.abs(player.trainable["a"] - before).max())
        assert moved == pytest.approx(logged[-1], rel=2e-3, abs=1e-7)
    assert logged == pytest.approx([0, 0, 0, 2e-4, 4e-4])
    assert (int(player.updates), int(updates_applied(player.optimizer))) == (5, 3)


@pytest.mark.parametrize("moment", ["mu", "nu"])
def test_a_bad_moment_leaves_the_parameters_alone(apply, moment):
    used, step = apply
    player = used.begin({"a": jnp.ones(3)})
    clip, adam, *rest = player.optimizer
    adam = adam._replace(**{moment: {"a": jnp.array([0.0, jnp.nan, 0.0])}})
    player = dataclasses.replace(player, optimizer=(clip, adam, *rest))
    player, metrics = step(player, jnp.ones(3), jnp.float32(1))
    assert (float(metrics["skipped"]), float(metrics["learning_rate"])) == (1, 0)
    assert not np.isfinite(metrics["update_norm"])
    np.testing.assert_array_equal(player.trainable["a"], 1)
    np.testing.assert_array_equal(player.ema["a"], 1)


def metrics(skipped, player=""):
    values = {"loss": 1.0, "gradient_norm": 2.0, "update_norm": np.nan if skipped else 3.0, "learning_rate": 0.0}
    return {f"{player}{name}": jnp.float32(value) for name, value in {**values, "skipped": skipped}.items()}


def test_updates_that_are_skipped_in_a_row_stop_the_run(tmp_path):
    message = r"^norm of the update nan: not finite at step 5; 3 updates in a row were skipped \(max_skipped=3\)"
    with Log(toy_experiment(max_skipped=3, steps=100), tmp_path) as log:
        for step, skipped in enumerate([1, 1, 0, 1, 1]):
            log.add(step, metrics(skipped))
        log.flush()
        assert log.skipped == {"": 2}
        log.add(5, metrics(True))
        with pytest.raises(FloatingPointError, match=message):
            log.flush()
    # The count goes on after an interruption, and each player has its own.
    with Log(toy_experiment(max_skipped=3, steps=100), tmp_path, {"critic/": 2}) as log:
        log.add(6, metrics(True, "generator/") | metrics(False, "critic/"))
    assert log.skipped == {"generator/": 1, "critic/": 0}


@pytest.mark.slow
def test_a_run_that_learns_nothing_fails_however_short_it_is(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class NeverFinite(ToyMethod):
        def loss(self, networks, batch, keys, execution=None):
            value, metrics = super().loss(networks, batch, keys)
            return value * jnp.nan, metrics

    experiment = toy_experiment(method=NeverFinite(), steps=6, checkpoint_every=4, **SMALL)
    for _ in range(2):  # the second one resumes from step 4
        with pytest.raises(FloatingPointError, match="at step 6; 6 updates in a row were skipped"):
            train(experiment, tmp_path)
        assert not (tmp_path / "product").exists()
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangedStart(ToyStart):
    """Weights of which one is replaced."""

    value: float

    def networks(self, mesh, key):
        networks = super().networks(mesh, key)
        networks.out.bias[...] = networks.out.bias[...].at[3].set(self.value)
        return networks


@pytest.mark.parametrize("trainable", ["out/.*", "net/.*"])
def test_weights_that_are_not_finite_are_not_trained(tmp_path, trainable):
    start = ChangedStart(width=4, value=np.inf)
    with pytest.raises(FloatingPointError, match=r"weights to start from are not finite: \S*out/bias;"):
        train(toy_experiment(start=start, trainable=((trainable, 1),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_not_finite_is_not_exported(tmp_path):
    networks = ToyNetworks(nnx.Rngs(0), 4)
    networks.net.first.kernel[...] = networks.net.first.kernel[...].at[0, 0].set(jnp.nan)
    with pytest.raises(FloatingPointError, match="net/first/kernel is not finite, so no product is written"):
        export(toy_experiment(), networks, tmp_path / "product" / "1")
    assert not list(tmp_path.iterdir())


def test_frozen_weights_that_changed_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("helios_jax.training.trainer.as_json", lambda experiment: {"run": "toy"})
    rules = {"trainable": (("net/.*", 1),)}
    assert train(toy_experiment(start=ChangedStart(width=4, value=0.5), steps=2, **rules), tmp_path) == 0
    assert set(json.loads((tmp_path / "start.json").read_text())["frozen"]) == {"out/kernel", "out/bias"}
    with pytest.raises(ValueError, match="1 of 2 frozen parameters differ, the first is out/bias"):
        train(toy_experiment(start=ChangedStart(width=4, value=0.25), steps=4, **rules), tmp_path)
    assert train(toy_experiment(start=ChangedStart(width=4, value=0.5), steps=4, **rules), tmp_path) == 0


@pytest.mark.parametrize("ema", [None, Ema()])
def test_a_released_run_keeps_what_it_exports(ema):
    experiment = toy_experiment(ema=ema, **SMALL)
    running = procedure_of(experiment).start(experiment, MeshShape().build(), None)
    before = {name: np.asarray(array) for name, array in flatten(running.networks())[1].items()}
    moments = jax.tree.leaves(running.items()[PLAYER]["optimizer"])
    running.release()
    assert all(array.is_deleted() for array in moments)
    for name, array in flatten(running.networks())[1].items():
        np.testing.assert_array_equal(array, before[name])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignallingStart(ToyStart):
    """A SIGTERM comes while the weights are loaded."""

    def networks(self, mesh, key):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().networks(mesh, key)


@pytest.mark.slow
def test_sigterm_while_loading_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("helios_jax.training.trainer.as_json", lambda experiment: {"run": "toy"})
    before = signal.getsignal(signal.SIGTERM)
    for steps in (4, 8):  # a new run, and one that resumes from step 4
        assert train(toy_experiment(start=SignallingStart(width=4), steps=steps), tmp_path) == PREEMPTED == 75
        assert not (tmp_path / "product" / str(steps)).exists()
        assert signal.getsignal(signal.SIGTERM) is before
        assert train(toy_experiment(steps=steps, **SMALL), tmp_path) == 0
    assert sorted(read_metrics(tmp_path / "metrics.jsonl")) == list(range(1, 9))


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with (
        claimed(tmp_path / ".lock", "it is being trained"),
        pytest.raises(BlockingIOError, match="is being trained by another process"),
    ):
        train(toy_experiment(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_workdir_may_begin_with_a_tilde_and_must_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train(toy_experiment(steps=1, **SMALL), "~/run") == 0
    assert (tmp_path / "run" / "product" / "1" / "params.npz").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file; choose another folder"):
        train(toy_experiment(), tmp_path / "file")


def test_waiting_for_data_is_measured(tmp_path):
    class SlowIterator(ToyIterator):
        def __next__(self):
            time.sleep(0.05)
            return super().__next__()

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class SlowData(ToyData):
        def batches(self, batch_size, part, seed):
            return SlowIterator(batch_size, part, seed)

    assert train(toy_experiment(data=SlowData(), steps=4, log_every=2, **SMALL), tmp_path) == 0
    record = read_metrics(tmp_path / "metrics.jsonl")[4]
    assert 0.05 <= record["data_seconds"] < 0.5
    assert record["seconds_per_step"] > 0
    assert record["skipped_in_a_row"] == 0
