"""Validation and export in two processes: the videos and the product of one process, written once."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

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
def alone(parts, tmp_path_factory):
    """What one process writes."""
    folder = tmp_path_factory.mktemp("one") / "out"
    validate(parts, folder, "transformer", 1)
    return folder


@pytest.fixture(scope="module")
def videos(alone):
    """The two videos of one process."""
    return [load_video(alone / "0" / f"{number}.mp4", 64, 64) for number in range(2)]


@pytest.mark.parametrize("trained", ["transformer", "transformer,text_encoder"])
def test_two_processes_write_what_one_writes(trained, parts, alone, videos, tmp_path):
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
    compare_products(tmp_path / "out" / "product", alone / "product")


def compare_reports(found: pathlib.Path, expected: pathlib.Path) -> None:
    ours, theirs = (jax.tree.leaves_with_path(json.loads(path.read_text())) for path in (found, expected))
    for (path, value), (other, wanted) in zip(ours, theirs, strict=True):
        assert path == other
        assert value == (pytest.approx(wanted, rel=1e-3, abs=1e-6) if isinstance(wanted, float) else wanted), path


def compare_products(found: pathlib.Path, expected: pathlib.Path) -> None:
    names = sorted(path.relative_to(expected) for path in expected.rglob("*"))
    assert sorted(path.relative_to(found) for path in found.rglob("*")) == names
    for name in names:
        if name.suffix == ".safetensors":
            tensors, others = load_file(expected / name), load_file(found / name)
            assert others.keys() == tensors.keys()
            for tensor, array in tensors.items():
                np.testing.assert_allclose(others[tensor], array, rtol=1e-5, atol=1e-6, err_msg=f"{name}: {tensor}")
        elif name.name == "merging.json":
            compare_reports(found / name, expected / name)
        elif (expected / name).is_file() and name.parent.name != "text_encoder":
            assert (found / name).read_bytes() == (expected / name).read_bytes(), name
