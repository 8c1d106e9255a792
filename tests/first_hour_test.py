"""Mistakes of the first hour: each is answered by a clear line, at once, and nothing is written."""

import csv
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.media.saving import save_video

SAMPLE = [
    "sample",
    "--prompt=a",
    "--height=64",
    "--width=64",
    "--steps=1,1,1",
    "--num_frames=33",
    "--max_text_tokens=16",
]
SECONDS = 8
"""Most seconds of a processor for an answer: most take 2, and twice that where other tests share the core."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small checkpoint and files that beginners may have."""
    folder = tmp_path_factory.mktemp("first_hour")
    write_random_checkpoint(folder / "model")
    (folder / "notes.txt").write_text("not a LoRA\n")
    save_video(folder / "short.mp4", np.zeros((20, 64, 64, 3), np.uint8))
    (folder / "mine.mp4").write_bytes(b"a video of the user")
    with open(folder / "prompts.csv", "w", newline="") as file:
        csv.writer(file).writerows([["1", "a red fox"], ["2", "a blue bird"]])
    return folder


CASES = {
    "wrong model": ([*SAMPLE, "--model=BestWishYsh/Helios-Distiled", "--out=a.mp4"], ["BestWishYsh/Helios-Distiled"]),
    "no model folder": ([*SAMPLE, "--model=./model_", "--out=a.mp4"], ["model_"]),
    "misspelt flag": ([*SAMPLE, "--model=model", "--out=a.mp4", "--promt=b"], ["--promt"]),
    "odd size": ([*SAMPLE, "--model=model", "--out=a.mp4", "--height=65"], ["height=65", "multiple"]),
    "missing image": ([*SAMPLE, "--model=model", "--out=a.mp4", "--image=cat.png"], ["cat.png"]),
    "missing out": ([*SAMPLE, "--model=model"], ["--out"]),
    "output of the user": ([*SAMPLE, "--model=model", "--out=mine.mp4"], ["mine.mp4", "exists"]),
    "text as LoRA": ([*SAMPLE, "--model=model", "--out=a.mp4", "--lora=notes.txt"], ["notes.txt"]),
    "csv without header": (["sample", "--model=model", "--prompt_file=prompts.csv", "--out=videos"], ["prompts.csv"]),
    "short clip": ([*SAMPLE, "--model=model", "--out=a.mp4", "--video=short.mp4"], ["20 frames", "33"]),
    "wrong steps": ([*SAMPLE, "--model=model", "--out=a.mp4", "--steps=two"], ["steps"]),
    "setting of training": (
        ["train", "--config=stage1_init.py:tiny", "--workdir=run", "--config.optimizer.lr=1"],
        ["config.optimizer.lr", "learning_rate"],
    ),
    "misspelt flag of training": (["train", "--confg=stage1_init.py:tiny", "--workdir=run"], ["--confg", "--config?"]),
    "training without a folder": (["train", "--config=stage1_init.py:tiny"], ["give --workdir"]),
    "a video for clips": (["prepare", "--model=model", "--clips=mine.mp4", "--out=latents"], ["mine.mp4 is one video"]),
    "size of an experiment": (["train", "--config=stage1_init.py:13b", "--workdir=run"], ["'13b'", "14b, 1_3b"]),
    "run in a folder of the user": (["train", "--config=stage1_init.py:tiny", "--workdir=."], ["holds", "config.json"]),
    "clips that are not there": (["prepare", "--model=model", "--clips=clips.json", "--out=latents"], ["clips.json"]),
    "conversion of nothing": (["convert", "to-orbax", "nowhere", "target"], ["nowhere"]),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_answered_at_once(folder, case):
    (command, *arguments), words = CASES[case]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    start = _seconds_of_children()
    result = subprocess.run(
        [sys.executable, "-m", f"helios_jax.{command}", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    seconds = _seconds_of_children() - start
    assert result.returncode in (1, 2), result
    assert "Traceback" not in result.stderr, result.stderr
    message = result.stderr.strip().splitlines()
    # argparse shows the usage first.
    lines = message[-1:] if result.returncode == 2 else message
    assert len(lines) <= 3, result.stderr
    assert [word for word in words if word not in "\n".join(lines)] == [], result.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert seconds < SECONDS


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
