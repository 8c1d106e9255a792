"""The command ``helios-evaluate`` from its arguments to its files."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from helios_jax import evaluate
from helios_jax.checkpoints.random import write_random_checkpoint
from helios_jax.data.moving_shapes import MovingShapes
from helios_jax.evaluation import moving_shapes
from helios_jax.media.saving import save_video


def run(*arguments) -> int:
    return evaluate.main(evaluate.parse(["helios-evaluate", *map(str, arguments)]))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Scenes 0 to 3 of world 3."""
    folder = tmp_path_factory.mktemp("clips")
    scenes = MovingShapes(seed=3, size=4, frames=33, height=64, width=64)
    for number in range(4):
        save_video(folder / f"{number}.mp4", scenes[number]["frames"], 24, crf=4)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model, or videos as files or with --videos_dir: one of them is needed"),
        (["--model=a", "b.mp4"], "give --model, or videos as files or with --videos_dir: not both"),
        (["--model=nowhere"], "nowhere is neither a folder nor a hub id"),
        (["nowhere.mp4"], "the video nowhere.mp4 does not exist (looked in "),
        (["--videos_dir=nowhere"], "--videos_dir=nowhere is not a folder"),
        (["a.mp4", "--steps=2,2,2"], "--steps is about sampling, and videos are read from files"),
        (["a.mp4", "--rules=short"], "--rules belongs to --suite=heliosbench, not to drift"),
        (["a.mp4", "--prompt_file=p.txt"], "the prompt file p.txt does not exist"),
        (["a.mp4", "--continue_scenes"], "--continue_scenes is for videos of moving shapes that --model samples"),
        (["a.mp4", "--metric=nowhere:a"], "--metric=nowhere:a: ModuleNotFoundError"),
        (["a.mp4", "--metric=a:b", "--processes=2"], "--metric is run in one process"),
    ],
)
def test_arguments_that_cannot_work_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run("--suite=drift", "--out=out", *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"helios-evaluate: {message}")
    assert os.listdir(tmp_path) == []


def test_the_benchmark_names_the_extra_that_it_needs(tmp_path, monkeypatch, capsys, clips):
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ['absent>=4; extra == "evaluate"'])
    assert run("--suite=heliosbench", f"--videos_dir={clips}", f"--out={tmp_path / 'out'}") == 1
    message = "the suite heliosbench needs absent: pip install 'helios_jax[evaluate]'"
    assert capsys.readouterr().err == f"helios-evaluate: {message}\n"


def test_files_are_measured_and_a_second_run_returns_at_once(tmp_path, clips, capsys):
    """Two of the four files change places, so that they show other captions than those of their scenes."""
    folder = tmp_path / "videos"
    shutil.copytree(clips, folder)
    shutil.copy(clips / "2.mp4", folder / "3.mp4")
    shutil.copy(clips / "3.mp4", folder / "2.mp4")
    out = tmp_path / "out"
    command = ["--suite=moving_shapes", f"--videos_dir={folder}", "--world=3", "--processes=1", f"--out={out}"]
    assert run(*command) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["files"]["recovered_rate"] == 0.5
    assert scores["settings"]["world"] == 3
    assert [row["recovered"] for row in scores["videos"]] == [1, 1, 0, 0]
    assert "files: 4 of 4 videos are measured" in capsys.readouterr().out
    record = out / "records" / "files" / "0.json"
    written = record.stat().st_mtime_ns
    assert run(*command) == 0
    assert record.stat().st_mtime_ns == written
    assert run(*command, "--chunk_frames=11") == 1
    assert "other settings: chunk_frames was 33, now 11" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_find_what_one_process_finds(tmp_path, clips):
    for processes in (1, 2):
        out = tmp_path / str(processes)
        assert run("--suite=drift", f"--videos_dir={clips}", f"--processes={processes}", f"--out={out}") == 0
    one, two = (json.loads((tmp_path / name / "scores.json").read_text()) for name in "12")
    assert one == two
    assert one["files"]["videos"] == 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "random"
    write_random_checkpoint(folder)
    return folder


METRIC = """
import dataclasses, os
from helios_jax.evaluation.metrics import Result

@dataclasses.dataclass(frozen=True)
class Red:
    name: str = "red"

    def start(self, video):
        if video.name == "1" and os.path.exists("interrupt"):
            raise KeyboardInterrupt
        return Measurement()

class Measurement:
    sums = 0.0

    def update(self, frames):
        self.sums += frames[..., 0].mean() / 255

    def result(self):
        return Result(values={"red": self.sums})
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a prompt has .* tokens")
def test_a_checkpoint_is_sampled_interrupted_and_resumed(tmp_path, monkeypatch, capsys, checkpoint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(METRIC)
    (tmp_path / "interrupt").touch()
    command = [f"--model={checkpoint}", "--suite=moving_shapes", "--videos=2", "--batch=1", "--world=5"]
    command += ["--num_frames=33", "--steps=1,1,1", "--metric=mine.py:Red", "--out=out"]
    assert run(*command) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert sorted(os.listdir("out/records/sampled")) == ["0.json"]
    (tmp_path / "interrupt").unlink()
    assert run(*command) == 0
    assert run(*(word.replace("--out=out", "--out=whole") for word in command)) == 0
    resumed, whole = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("out", "whole"))
    assert resumed == whole
    assert whole["sampled"]["recovered_rate"] == whole["vae"]["recovered_rate"] == 0
    assert len(whole["statistics"]["scenes"]["chunks"]["brightness"]) == 1
    scene = MovingShapes(seed=5, size=1, frames=33, height=64, width=64)[0]["frames"]
    assert whole["videos"][0]["shapes"] >= 1
    with np.load("out/shown/scenes/0.npz") as arrays:
        np.testing.assert_array_equal(arrays["frames"], scene)
    record = json.loads((tmp_path / "out" / "records" / "sampled" / "0.json").read_text())
    assert 0 < record["values"]["red"] < 1
    assert "drifting_red" in record["values"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a prompt has .* tokens")
def test_the_benchmark_of_a_checkpoint(tmp_path, checkpoint):
    pytest.importorskip("cv2", reason="the extra evaluate is not installed")
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,prompt,duration\n1,A red fox.,20\n7,A blue bird.,33\n")
    size = ["--height=64", "--width=256", "--max_text_tokens=16", "--steps=1,1,1", "--save_videos"]
    command = [f"--model={checkpoint}", "--suite=heliosbench", f"--prompt_file={prompts}", *size]
    assert run(*command, f"--out={tmp_path / 'out'}") == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [row["name"] for row in scores["videos"]] == ["1_20_ori33", "7_33_ori33"]
    assert scores["throughput"]["frames_per_second"] > 0
    assert scores["throughput"]["rating"] is None
    assert len(scores["missing"]) == 8
    files = [f"--videos_dir={tmp_path / 'out' / 'videos'}", "--suite=heliosbench", "--processes=1"]
    assert run(*files, f"--prompt_file={prompts}", f"--out={tmp_path / 'again'}") == 0
    again = json.loads((tmp_path / "again" / "scores.json").read_text())
    # The mp4 files differ a little from the frames that were measured while they were sampled.
    for row, other in zip(scores["videos"], again["videos"], strict=True):
        assert row["name"] == other["name"]
        assert row["prompt"] == other["prompt"]
        assert other["motion_amplitude"] == pytest.approx(row["motion_amplitude"], rel=0.2, abs=0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a prompt has .* tokens")
def test_the_command_of_the_small_world(tmp_path, checkpoint, capsys):
    """``python -m helios_jax.evaluation.moving_shapes`` writes what train_tiny.py reads; it replaces other scores."""
    command = ["moving_shapes", f"--pipeline={checkpoint}", f"--out={tmp_path}", "--steps=1,1,1", "--processes=1"]
    command += ["--batch=1"]
    for videos in (2, 1):
        assert moving_shapes.main(moving_shapes._parse([*command, f"--videos={videos}"])) == 0
        text = capsys.readouterr().out
        printed = json.loads(text[text.index("{\n") :])
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert scores["settings"]["videos"] == len(scores["videos"]) == videos
        assert scores["sampled"] == printed["sampled"]
        assert printed["sampled"]["recovered"] == f"0.0 % (0 of {videos})"
        assert ("frechet" in printed["statistics"]["sampled"]) == (videos > 1)
        with Image.open(tmp_path / "samples.webp") as moving:
            assert (moving.size, moving.n_frames) == ((videos * 64, 192), 99)
        assert (tmp_path / "samples.png").exists()
