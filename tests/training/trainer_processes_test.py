"""Whole processes: runs that are killed, and runs spread over processes and devices."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from helios_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

SCRIPT = pathlib.Path(__file__).with_name("toy_training.py")
ROOT = SCRIPT.parents[2]
PATIENCE = 600
"""Seconds; a run takes 12 of them on a machine that does nothing else."""


def start(workdir, changes, cluster=(), devices=1):
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, str(SCRIPT), str(workdir), json.dumps(changes), *map(str, cluster)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)


def kill(*processes):
    for process in processes:
        process.kill()
        process.communicate()  # closes its pipe too
        assert process.returncode == -signal.SIGKILL


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def run(workdir, changes, processes=1, devices=1):
    port = free_port()
    clusters = [(processes, index, port) for index in range(processes)] if processes > 1 else [()]
    return [start(workdir, changes, cluster, devices) for cluster in clusters]


def wait_for_step(workdir, step, processes):
    """Waits until the log has reached a step."""
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + PATIENCE
    while not metrics.exists() or max(read_metrics(metrics), default=0) < step:
        assert time.monotonic() < deadline, "no progress"
        assert all(process.poll() is None for process in processes), processes[0].communicate()[0]
        time.sleep(0.005)


def losses(workdir):
    return {step: record["loss"] for step, record in read_metrics(workdir / "metrics.jsonl").items()}


def product(workdir, step):
    return dict(np.load(workdir / "product" / str(step) / "params.npz"))


LONG = {"steps": 200, "checkpoint_every": 7}


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A run of 200 steps on one device that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("long")
    finish(*run(workdir, LONG))
    return workdir


def test_a_killed_run_resumes_bit_for_bit(long_run, tmp_path):
    step = 20 + int.from_bytes(os.urandom(1)) // 2  # anywhere: between checkpoints, or while one is written
    processes = run(tmp_path, LONG)
    wait_for_step(tmp_path, step, processes)
    kill(*processes)
    reached = max(losses(tmp_path))
    assert reached < 200, "the kill came too late to be a test"
    finish(*run(tmp_path, LONG))
    assert losses(tmp_path) == losses(long_run), f"killed at step {reached}"
    assert all(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir()), "unfinished ones are removed"
    for name, array in product(long_run, 200).items():
        np.testing.assert_array_equal(product(tmp_path, 200)[name], array, err_msg=name)


SHORT = {"steps": 40, "checkpoint_every": 7}


@pytest.fixture(scope="module")
def cluster_run(tmp_path_factory):
    """The same run for 40 steps on two processes of four devices."""
    workdir = tmp_path_factory.mktemp("cluster")
    finish(*run(workdir, SHORT, processes=2, devices=4))
    return workdir


def test_two_processes_of_four_devices_equal_one_device(long_run, cluster_run):
    whole = losses(long_run)
    assert losses(cluster_run) == pytest.approx({step: whole[step] for step in range(1, 41)}, rel=1e-5)


def test_two_processes_validate_as_one_does(long_run, cluster_run):
    found, expected = (
        {step: float((folder / "validation" / str(step) / "norm.txt").read_text()) for step in range(5, 41, 5)}
        for folder in (cluster_run, long_run)
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(found.values())) == 8


def test_two_killed_processes_resume_bit_for_bit(cluster_run, tmp_path):
    processes = run(tmp_path, SHORT, processes=2, devices=4)
    wait_for_step(tmp_path, 12, processes)
    kill(*processes)
    assert max(losses(tmp_path)) < 40
    finish(*run(tmp_path, SHORT, processes=2, devices=4))
    assert losses(tmp_path) == losses(cluster_run)


def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path):
    first = run(tmp_path, LONG)
    wait_for_step(tmp_path, 20, first)
    (second,) = run(tmp_path, LONG)
    output = second.communicate(timeout=PATIENCE)[0]
    assert second.returncode != 0
    assert "is being trained by another process" in output
    finish(*first)
    assert max(losses(tmp_path)) == 200


def test_all_processes_stop_at_one_step_after_a_sigterm(tmp_path):
    changes = LONG | {"checkpoint_every": 1000}
    processes = run(tmp_path, changes, processes=2)
    wait_for_step(tmp_path, 20, processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], "\n".join(outputs)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert 20 <= int(saved.name) < 200
    assert int(saved.name) == max(losses(tmp_path))
