"""The trainer carries several players: loop, log, checkpoints and resuming, on a toy generator and critic."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_players import COPIES, LOSSES, ToyPlayers, players_experiment
from toy_training import ToyData, ToyIterator

from helios_jax.training.checkpoints import Checkpoints
from helios_jax.training.descent import procedure_of
from helios_jax.training.ema import Ema
from helios_jax.training.metrics import read_metrics
from helios_jax.training.params import flatten, unflatten
from helios_jax.training.trainer import train

GENERATOR_STEPS = [1, 6, 11]


def values(workdir):
    """What was logged, without times and memory."""
    return {
        step: {name: value for name, value in record.items() if "/" in name}
        for step, record in read_metrics(workdir / "metrics.jsonl").items()
    }


def product(workdir, step=14):
    return dict(np.load(workdir / "product" / str(step) / "params.npz"))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run of 14 steps that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train(players_experiment(), workdir) == 0
    return workdir


def test_players_follow_a_loop_written_out(whole_run):
    """Against an independent loop: optax's AdamW for each player, and equation (1) of ``ema`` for the generator."""
    experiment = players_experiment()
    graph, params = flatten(experiment.initial_networks(experiment.mesh.build()))
    players = {name: {path: x for path, x in params.items() if path.startswith(name)} for name in LOSSES}
    warmup = optax.linear_schedule(0.0, 1e-3, 5)
    optimizers = {
        "generator": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(warmup, weight_decay=1e-4)),
        "critic": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.0)),
    }
    kept = {name: optimizers[name].init(players[name]) for name in LOSSES}
    average, count, data, losses = players["generator"], 0, ToyIterator(8, (0, 1), 3), {}
    for step in range(1, 15):
        keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(jax.random.key(3), step), i) for i in range(8)])
        batch = jax.tree.map(jnp.asarray, next(data))
        for name in ["generator", "critic"] if step in GENERATOR_STEPS else ["critic"]:

            def loss(own, name=name, batch=batch, keys=keys):
                together = players["generator"] | players["critic"] | own
                return LOSSES[name](unflatten(graph, together), batch, keys)

            losses[step, name], gradient = jax.value_and_grad(loss)(players[name])
            updates, kept[name] = optimizers[name].update(gradient, kept[name], players[name])
            players[name] = optax.apply_updates(players[name], updates)
        if step in GENERATOR_STEPS or step <= COPIES:
            count += 1
            decay = min(count / (9 + count), 0.9) if count > 1 else 0.0
            average = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, average, players["generator"])
    found = values(whole_run)
    assert {(step, name) for step in found for name in LOSSES if f"{name}/loss" in found[step]} == losses.keys()
    for (step, name), value in losses.items():
        assert found[step][f"{name}/loss"] == pytest.approx(float(value), rel=2e-5)
    for name, array in (average | players["critic"]).items():
        np.testing.assert_allclose(product(whole_run)[name], array, rtol=0, atol=1e-6, err_msg=name)


def test_each_player_has_counters_of_its_own(whole_run):
    experiment = players_experiment()
    with Checkpoints(whole_run / "checkpoints") as checkpoints:
        data = ToyIterator(8, (0, 1), 3)
        running = procedure_of(experiment).start(
            experiment, experiment.mesh.build(), lambda abstract: checkpoints.restore(abstract, data)
        )
    assert (int(running.state.step), data.position) == (14, 14)
    counts = {name: (int(player.updates), int(player.ema_count)) for name, player in running.state.players.items()}
    assert counts == {"generator": (3, 5), "critic": (14, 0)}
    assert {path.name for path in (whole_run / "checkpoints" / "12").iterdir()} >= {"generator", "critic", "progress"}


def test_metrics_are_keyed_by_player_and_vary_from_step_to_step(whole_run, capsys):
    names = {"loss", "gradient_norm", "update_norm", "learning_rate", "skipped"}
    found = values(whole_run)
    for step, record in found.items():
        players = ["generator", "critic"] if step in GENERATOR_STEPS else ["critic"]
        assert record.keys() == {f"{player}/{name}" for player in players for name in names}
    # The schedule of a player goes by its own updates: warm-up over 5 steps.
    assert [found[step]["generator/learning_rate"] for step in GENERATOR_STEPS] == pytest.approx([0, 2e-4, 4e-4])
    (events,) = (whole_run / "tensorboard").iterdir()
    assert b"generator/loss" in events.read_bytes()


def test_windows_of_the_log_average_over_the_steps_that_have_a_metric(whole_run, tmp_path, capsys):
    assert train(players_experiment(log_every=7), tmp_path) == 0
    single, windows = values(whole_run), values(tmp_path)
    assert list(windows) == [7, 14]
    for end, generator in ((7, [1, 6]), (14, [11])):
        losses = [single[step]["generator/loss"] for step in generator]
        assert windows[end]["generator/loss"] == pytest.approx(np.mean(losses), rel=1e-6)
        losses = [single[step]["critic/loss"] for step in range(end - 6, end + 1)]
        assert windows[end]["critic/loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 7/14")]
    assert "generator loss" in lines[0]
    assert "critic loss" in lines[0]


class CrashingIterator(ToyIterator):
    def __next__(self):
        if self.position == 9:
            raise RuntimeError("power cut")
        return super().__next__()


class CrashingData(ToyData):
    def batches(self, batch_size, part, seed):
        return CrashingIterator(batch_size, part, seed)


def test_a_run_that_was_cut_off_resumes_bit_for_bit(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr("helios_jax.training.trainer.as_json", lambda experiment: {"run": "toy"})
    with pytest.raises(RuntimeError, match="power cut"):
        train(players_experiment(data=CrashingData()), tmp_path)
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == 8
    assert train(players_experiment(), tmp_path) == 0
    assert values(tmp_path) == values(whole_run)
    for name, array in product(whole_run).items():
        np.testing.assert_array_equal(product(tmp_path)[name], array, err_msg=name)


def test_a_skipped_update_names_its_player_and_leaves_the_other_alone(whole_run, tmp_path, capsys):
    experiment = players_experiment(method=ToyPlayers(nan_at=5), steps=6)  # the batch of step 6
    assert train(experiment, tmp_path) == 0
    problem = (
        r"\ncritic loss nan(, gradient norm \S+)?(, norm of the update \S+)?: not finite at step 6: update left out\n"
    )
    assert re.search(problem, capsys.readouterr().out)
    found = values(tmp_path)
    assert (found[6]["critic/skipped"], found[6]["generator/skipped"]) == (1, 0)
    assert np.isnan(found[6]["critic/loss"])
    assert found[6]["generator/loss"] == values(whole_run)[6]["generator/loss"]


def test_training_can_stop_where_a_player_is_not_finite(tmp_path):
    experiment = players_experiment(method=ToyPlayers(nan_at=4), on_nan="stop", ema=Ema())
    with pytest.raises(FloatingPointError, match=r"^critic loss nan.*: not finite at step 5; a lower learning rate"):
        train(experiment, tmp_path)
