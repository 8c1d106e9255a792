"""Validation in two processes: the videos of one process, written once."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.media.reading import load_video

pytestmark = pytest.mark.slow

SCRIPT = pathlib.Path(__file__).with_name("validation_process.py")


def validate(parts: pathlib.Path, folder: pathlib.Path, trained: str, processes: int) -> list[str]:
    """Runs a validation and returns the output of every process; process i writes to ``folder/i``, if at all."""
    folder.mkdir()
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "JAX_PLATFORMS": "cpu"}
    clusters = [(processes, index, port) for index in range(processes)] if processes > 1 else [()]
    command = [sys.executable, str(SCRIPT), str(parts), str(folder), trained]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([*command, *map(str, cluster)], env=environment, **pipes) for cluster in clusters]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(outputs)
    return outputs


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    write_random_checkpoint(folder, pipeline=PipelineConfig(), scheduler=SchedulerConfig.mid())
    return folder


@pytest.fixture(scope="module")
def videos(parts, tmp_path_factory):
    """The two videos of one process."""
    folder = tmp_path_factory.mktemp("one") / "out"
    validate(parts, folder, "transformer", 1)
    return [load_video(folder / "0" / f"{number}.mp4", 64, 64) for number in range(2)]


@pytest.mark.parametrize("trained", ["transformer", "transformer,text_encoder"])
def test_two_processes_sample_the_videos_of_one(trained, parts, videos, tmp_path):
    outputs = validate(parts, tmp_path / "out", trained, 2)
    assert all("sharded over 2 True" in output for output in outputs)
    assert sorted(path.name for path in (tmp_path / "out" / "0").iterdir()) == ["0.mp4", "0.png", "1.mp4", "1.png"]
    assert not (tmp_path / "out" / "1").exists(), "only the first process writes"
    for number, expected in enumerate(videos):
        found = load_video(tmp_path / "out" / "0" / f"{number}.mp4", 64, 64)
        assert found.shape == expected.shape == (33, 64, 64, 3)
        # Sums are taken in another order, and the mp4 is lossy.
        assert np.abs(found.astype(float) - expected).mean() < 1
    assert np.abs(videos[0].astype(float) - videos[1]).mean() > 10
