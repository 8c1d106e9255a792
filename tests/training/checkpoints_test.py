"""Checkpoints of training: what comes back, what is kept, and what goes wrong."""

import contextlib
import dataclasses
import gc
import importlib
import json
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_training import ToyIterator, ToyStart, toy_experiment

from helios_jax.parallel.host_memory import on_host
from helios_jax.training import checkpoints as checkpoints_module
from helios_jax.training.checkpoints import Checkpoints
from helios_jax.training.descent import PLAYER, Descent
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import MAY_CHANGE
from helios_jax.training.overrides import as_json, frozen
from helios_jax.training.run_folder import check_settings, write_settings
from helios_jax.training.sharding import MeshShape
from helios_jax.training.starts import FromCheckpoint
from helios_jax.training.state import abstract_state, initial_state, state_from_items, state_items
from helios_jax.training.trainer import train
from helios_jax.training.updates import Updater

# Where Orbax fails it leaves coroutines behind, which Python reports when it collects them.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")

DATA = pathlib.Path(__file__).with_name("data")
MESH = MeshShape().build()
EMA = Ema()


@pytest.fixture(autouse=True)
def coroutines_are_collected():
    """Collects coroutines here, where they are expected, and not during another module's test."""
    yield
    gc.collect()


def updaters(ema, names):
    adamw = toy_experiment().optimizer
    optimizer = adamw.build(["a", "b"], 10)
    return {name: Updater(optimizer=optimizer, learning_rates=adamw.learning_rates(10), ema=ema) for name in names}


def make_state(value: float = 0.0, size: int = 8, ema: Ema | None = None, names=("one",)):
    params = {
        name: {"a": jnp.arange(float(size)) + value + number, "b": jnp.full((2, 2), value)}
        for number, name in enumerate(names)
    }
    state = initial_state(updaters(ema, names), jax.device_put(params, MESH.devices[0, 0, 0]), MESH)
    players = {
        name: dataclasses.replace(player, updates=jnp.int32(7 - number), ema_count=jnp.int32(5 + number))
        for number, (name, player) in enumerate(state.players.items())
    }
    return dataclasses.replace(state, step=jnp.int32(7), players=players)


def make_items(*args, **options):
    return state_items(make_state(*args, **options))


def abstract(size: int = 8, ema: Ema | None = None, names=("one",)):
    params = {"a": jax.ShapeDtypeStruct((size,), jnp.float32), "b": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    return abstract_state(updaters(ema, names), {name: params for name in names}, MESH)


def restore(checkpoints, data, **options):
    expected = abstract(**options)
    return state_from_items(*checkpoints.restore(state_items(expected), data), expected)


def advanced(position):
    data = ToyIterator(8, (0, 1), 0)
    data.set_state({"position": position})
    return data


@pytest.mark.parametrize("names", [("one",), ("generator", "critic")])
@pytest.mark.parametrize("ema", [None, EMA])
def test_everything_comes_back(tmp_path, ema, names):
    state = make_state(0.5, ema=ema, names=names)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_items(state), advanced(11), step=7)
    data = advanced(0)
    with Checkpoints(tmp_path) as checkpoints:
        restored = restore(checkpoints, data, ema=ema, names=names)
    assert data.position == 11
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for found, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_a_parked_state_is_written_before_saving_returns(tmp_path, monkeypatch):
    """A few bytes at a time, and it comes back as it was."""
    monkeypatch.setattr(checkpoints_module, "MOST_COPIES", 40)
    state = make_state(3.0, 64)
    items = state_items(dataclasses.replace(state, players=on_host(state.players)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(items, ToyIterator(8, (0, 1), 0), step=7)
        # Without wait=True: Orbax reads the arrays until they are written, and the next step may change them.
        assert (tmp_path / "7").is_dir()
        jax.tree.map(lambda leaf: leaf.delete(), items)
        found = restore(checkpoints, ToyIterator(8, (0, 1), 0), size=64)
    jax.tree.map(np.testing.assert_array_equal, found.players, make_state(3.0, 64).players)


def test_the_newest_and_the_milestones_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(make_items(float(step)), advanced(step), step=step)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [4, 6, 7]


def test_a_step_that_is_saved_is_not_saved_again(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_items(1.0), advanced(1), step=1)
        checkpoints.save(make_items(2.0), advanced(2), step=1)
        assert float(restore(checkpoints, advanced(0)).players["one"].trainable["b"][0, 0]) == 1.0


@contextlib.contextmanager
def largest_file(size):
    """The system refuses to write files beyond ``size`` bytes, as it refuses any when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, capfd):
    size, random = 10**6, np.random.default_rng(0)
    items = make_items(size=size)
    noise = jnp.asarray(random.standard_normal(size), jnp.float32)
    items["one"]["trainable"]["a"] = noise
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(items, advanced(3), step=3, wait=True)
    problem = r"could not be written to .* GiB are free.*that of step 3 is complete. Make room"
    with largest_file(10**5), pytest.raises(OSError, match=problem):
        checkpoints.save(items, advanced(4), step=4, wait=True)
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    assert "Traceback" not in capfd.readouterr().err
    with Checkpoints(tmp_path) as again:
        found = restore(again, advanced(0), size=size).players["one"].trainable["a"]
        np.testing.assert_array_equal(found, noise)
        again.save(items, advanced(4), step=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(make_items(float(step)), advanced(step), step=step)
    for part in (tmp_path / "2" / "one").rglob("*"):
        if part.is_file() and part.parent.name == "d":
            part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"2 is damaged .* resume from step 1"):
        restore(checkpoints, advanced(0))


def test_an_unfinished_checkpoint_is_ignored(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_items(1.0), advanced(1), step=1)
    (tmp_path / "2.orbax-checkpoint-tmp" / "trainable").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_items(), advanced(1), step=1)
        with pytest.raises(ValueError, match="damaged or belongs to another run"):
            restore(checkpoints, advanced(0), size=9)


def test_a_failed_checkpoint_stops_the_run_and_the_run_can_be_resumed(tmp_path):
    with largest_file(5 * 10**5), pytest.raises(OSError, match="could not be written"):  # the optimizer has 2 MB
        train(toy_experiment(), tmp_path)
    assert train(toy_experiment(), tmp_path) == 0


def old_run(folder):
    """Unpacks a run of 4 steps in the layout before there were players; returns its experiment.

    It was begun with the code of commit ebfcd60, and resumed there to step 6. ``step_4.npz`` has the state of step 4 by
    path of (trainable, optimizer, ema, step), ``product_6.npz`` the parameters exported at the end.
    """
    shutil.unpack_archive(DATA / "run_of_one_player.zip", folder)
    settings = {"start": ToyStart(width=4), "ema": Ema(decay=0.5, start=1), "checkpoint_every": 4}
    return toy_experiment(steps=6, **settings)


def test_a_checkpoint_from_before_there_were_players_is_read(tmp_path):
    experiment = old_run(tmp_path)
    expected, read = dict(np.load(tmp_path / "step_4.npz")), {}
    data = advanced(0)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        running = Descent(method=experiment.method).start(
            experiment, MESH, lambda abstract: read.setdefault("it", checkpoints.restore(abstract, data))
        )
    assert (read["it"][0], data.position) == (4, 4)
    player = running.items()[PLAYER]
    assert (int(player["updates"]), int(player["ema_count"])) == (4, 4)
    found = (player["trainable"], player["optimizer"], player["ema"], jnp.int32(4))
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
    assert leaves.keys() == expected.keys()
    for name, array in expected.items():
        assert leaves[name].dtype == array.dtype
        np.testing.assert_array_equal(leaves[name], array, err_msg=name)


def test_a_run_from_before_there_were_players_is_resumed(tmp_path):
    assert train(old_run(tmp_path), tmp_path) == 0
    product = dict(np.load(tmp_path / "product" / "6" / "params.npz"))
    for name, array in np.load(tmp_path / "product_6.npz").items():
        np.testing.assert_allclose(product[name], array, rtol=0, atol=1e-6, err_msg=name)
    assert {path.name for path in (tmp_path / "checkpoints" / "6").iterdir()} >= {PLAYER, "progress"}


def settings(**changes):
    return as_json(toy_experiment(**changes))


def test_settings_may_stay(tmp_path):
    check_settings(tmp_path / "new", settings(), may_change=())
    write_settings(tmp_path / "new", settings())
    check_settings(tmp_path / "new", settings(), may_change=())


def test_changed_settings_are_listed(tmp_path):
    write_settings(tmp_path, settings())
    changes = {"batch_size": 16, "ema": Ema(decay=0.5), "steps": 20, "mesh": MeshShape(data=1)}
    with pytest.raises(ValueError, match="begun with other settings") as caught:
        check_settings(tmp_path, settings(**changes), may_change=("steps", "mesh"))
    changed = [change for line in str(caught.value).splitlines()[1:] for change in line.strip().split("; ")]
    assert "batch_size: 8 then, 16 now" in changed
    assert "ema.decay: not there then, 0.5 now" in changed
    assert not any("steps" in change or "mesh" in change for change in changed)
    check_settings(tmp_path, settings(steps=20, mesh=MeshShape(data=1)), may_change=("steps", "mesh"))


def test_settings_saved_under_an_earlier_name_of_a_class_are_the_same(tmp_path):
    now = settings(start=FromCheckpoint(folder="a"))
    write_settings(tmp_path, now | {"start": now["start"] | {"class": "Checkpoint"}})
    check_settings(tmp_path, now, may_change=())
    with pytest.raises(ValueError, match=r"start\.class: FromCheckpoint then, ToyStart now"):
        check_settings(tmp_path, settings(), may_change=())


@pytest.mark.parametrize(("name", "size"), [("stage2_init", "14b"), ("tiny_vae", "clips")])
def test_settings_saved_by_version_0_1_0_are_those_of_today(tmp_path, name, size):
    """Recorded at commit ebfcd60: settings that moved or were renamed since must not refuse to resume a run."""
    recorded = json.loads((DATA / "settings_0_1_0.json").read_text())[f"{name}:{size}"]
    write_settings(tmp_path, recorded)
    experiment = importlib.import_module(f"helios_jax.experiments.{name}").get_config(size)
    if name == "stage2_init":
        # The recipe decided once per batch in that version.
        experiment.method.context.decide = "batch"
    check_settings(tmp_path, as_json(frozen(experiment)), may_change=MAY_CHANGE)


def test_trainer_refuses_another_learning_rate_and_takes_more_steps(tmp_path):
    assert train(toy_experiment(steps=1), tmp_path) == 0
    changed = dataclasses.replace(toy_experiment().optimizer, learning_rate=2e-3)
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.001 then, 0\.002 now"):
        train(toy_experiment(optimizer=changed), tmp_path)
    assert train(toy_experiment(steps=2, log_every=2), tmp_path) == 0
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 2


def test_a_run_that_could_not_begin_leaves_no_settings(tmp_path):
    with pytest.raises(ValueError, match="does not use all"):
        train(toy_experiment(mesh=MeshShape(fsdp=3)), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_runs_begun_when_remat_belonged_to_the_method_are_resumed(tmp_path):
    now = settings()
    write_settings(tmp_path, now | {"method": {**now["method"], "remat": "offload"}})
    check_settings(tmp_path, now | {"remat": "full"}, may_change=MAY_CHANGE)
