"""Checkpoints of training: what comes back, what is kept, and what goes wrong."""

import contextlib
import dataclasses
import json
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_training import ToyIterator, toy_experiment

from helios_jax.training.checkpoints import Checkpoints, check_settings, write_settings
from helios_jax.training.ema import Ema
from helios_jax.training.overrides import as_json
from helios_jax.training.sharding import MeshShape
from helios_jax.training.state import abstract_state, initial_state
from helios_jax.training.trainer import train

MESH = MeshShape().build()
OPTIMIZER = toy_experiment().optimizer.build(["a", "b"], 10)
EMA = Ema()


def make_state(value: float = 0.0, size: int = 8, ema: Ema | None = None):
    params = {"a": jnp.arange(float(size)) + value, "b": jnp.full((2, 2), value)}
    state = initial_state(jax.device_put(params, MESH.devices[0, 0, 0]), {"c": jnp.ones(3)}, OPTIMIZER, ema, MESH)
    return dataclasses.replace(state, step=jnp.int32(7))


def abstract(size: int = 8, ema: Ema | None = None):
    params = {"a": jax.ShapeDtypeStruct((size,), jnp.float32), "b": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    return abstract_state(params, {"c": jnp.ones(3)}, OPTIMIZER, ema, MESH)


def advanced(position):
    data = ToyIterator(8, (0, 1), 0)
    data.set_state({"position": position})
    return data


@pytest.mark.parametrize("ema", [None, EMA])
def test_everything_comes_back(tmp_path, ema):
    state = make_state(0.5, ema=ema)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, advanced(11), step=7)
    data = advanced(0)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(abstract(ema=ema), data)
    assert data.position == 11
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for found, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_the_newest_and_the_milestones_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(make_state(float(step)), advanced(step), step=step)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [4, 6, 7]


def test_a_step_that_is_saved_is_not_saved_again(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1.0), advanced(1), step=1)
        checkpoints.save(make_state(2.0), advanced(2), step=1)
        assert float(checkpoints.restore(abstract(), advanced(0)).trainable["b"][0, 0]) == 1.0


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
    state = make_state(size=size)
    noise = {**state.trainable, "a": jnp.asarray(random.standard_normal(size), jnp.float32)}
    state = dataclasses.replace(state, trainable=noise)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, advanced(3), step=3, wait=True)
    problem = r"could not be written to .* GiB are free .*that of step 3 is complete. Make room"
    with largest_file(10**5), pytest.raises(OSError, match=problem):
        checkpoints.save(state, advanced(4), step=4, wait=True)
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    assert "Traceback" not in capfd.readouterr().err
    with Checkpoints(tmp_path) as again:
        np.testing.assert_array_equal(again.restore(abstract(size), advanced(0)).trainable["a"], noise["a"])
        again.save(state, advanced(4), step=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(make_state(float(step)), advanced(step), step=step)
    for part in (tmp_path / "2" / "trainable").rglob("*"):
        if part.is_file() and part.parent.name == "d":
            part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"2 is damaged .* go on from step 1"):
        checkpoints.restore(abstract(), advanced(0))


def test_an_unfinished_checkpoint_is_ignored(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1.0), advanced(1), step=1)
    (tmp_path / "2.orbax-checkpoint-tmp" / "trainable").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1]


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(), advanced(1), step=1)
        with pytest.raises(ValueError, match="damaged or of another run"):
            checkpoints.restore(abstract(size=9), advanced(0))


def test_a_failed_checkpoint_stops_the_run_and_the_run_can_go_on(tmp_path):
    with largest_file(5 * 10**5), pytest.raises(OSError, match="could not be written"):  # the optimizer has 2 MB
        train(toy_experiment(), tmp_path)
    assert train(toy_experiment(), tmp_path) == 0


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
    lines = str(caught.value).splitlines()[1:]
    assert "  batch_size: 8 then, 16 now" in lines
    assert "  ema.decay: not there then, 0.5 now" in lines
    assert not any("steps" in line or "mesh" in line for line in lines)
    check_settings(tmp_path, settings(steps=20, mesh=MeshShape(data=1)), may_change=("steps", "mesh"))


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
