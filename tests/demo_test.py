"""The demo: which model it takes, what it writes, and what it leaves alone."""

from pathlib import Path

import numpy as np
import pytest

from helios_jax import demo
from helios_jax.checkpoints import shipped
from helios_jax.checkpoints.sources import defaults_of
from helios_jax.data.moving_shapes import parse_caption
from helios_jax.media.decoding import read_frames
from helios_jax.media.timeline import read_timeline
from helios_jax.sampling.pipeline import HeliosPipeline


def run(*arguments: str) -> int:
    return demo.main(demo._parse(["demo", *arguments]))


@pytest.fixture
def uninstalled(monkeypatch, tmp_path):
    """An installation without helios-tiny."""
    monkeypatch.setattr(shipped, "package_folder", lambda: tmp_path / "nothing")


def test_its_prompts_are_captions_of_the_world():
    work = demo.tasks(None, (64, 64))
    assert [task.name for task in work] == ["text", "image", "clip", "switch"]
    texts = [text for task in work for text in (task.prompt, task.then) if text]
    found = [parse_caption(text).shapes for text in texts]
    assert [(len(shapes), shapes[0].colour, shapes[0].kind, shapes[0].direction) for shapes in found] == [
        (2, "red", "circle", "left"),
        (1, "blue", "triangle", "left"),
        (2, "cyan", "square", "up"),
        (1, "red", "circle", "right"),
        (1, "red", "circle", "left"),
    ]
    assert work[1].inputs["image"].shape == (64, 64, 3)
    assert work[2].inputs["video"].shape == (33, 64, 64, 3)
    assert demo.tasks(Path("car.mp4"), (64, 64))[2].inputs == {"video": Path("car.mp4")}


@pytest.mark.usefixtures("uninstalled")
def test_a_folder_of_the_user_stays(tmp_path, capsys):
    (tmp_path / "random_checkpoint").mkdir()
    (tmp_path / "random_checkpoint" / "weights").write_text("mine")
    assert run(f"--out={tmp_path}") == 1
    assert "random_checkpoint exists and is not a finished checkpoint of this demo" in capsys.readouterr().err
    assert (tmp_path / "random_checkpoint" / "weights").read_text() == "mine"


@pytest.mark.usefixtures("uninstalled")
def test_a_second_run_uses_the_checkpoint_of_the_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("helios_jax.checkpoints.random.write_random_checkpoint", Path.mkdir)
    for text in ("wrote a small checkpoint", "using the small checkpoint"):
        folder = demo.demo_checkpoint(tmp_path / "model")
        assert text in capsys.readouterr().out
    defaults = defaults_of(folder)
    assert (defaults.height, defaults.width, defaults.max_text_tokens, defaults.style) == (64, 64, 112, "textured")


@pytest.mark.slow
@pytest.mark.usefixtures("uninstalled")
def test_every_video_is_written_and_files_of_the_user_stay(tmp_path, capsys, monkeypatch):
    prompts = []
    stream = HeliosPipeline.stream

    def recorded(self, *args, **keywords):
        made = stream(self, *args, **keywords)
        change = made.set_prompt
        made.set_prompt = lambda prompt, **how: (prompts.append((made.index, prompt)), change(prompt, **how))
        return made

    monkeypatch.setattr(HeliosPipeline, "stream", recorded)
    monkeypatch.setattr(HeliosPipeline, "compile", lambda self, **_: 0.0)
    assert run(f"--out={tmp_path}", "--num_frames=66") == 0
    shown = capsys.readouterr().out
    for name in ("text", "image", "clip", "switch"):
        assert f"{name}.mp4: 66 frames in" in shown
        assert read_timeline(tmp_path / f"{name}.mp4").num_frames == 66
        first = next(read_frames(tmp_path / f"{name}.mp4", 0, 1))
        assert first.shape == (256, 256, 3)
        assert first.std() > 0
        assert np.fromfile(tmp_path / f"{name}.sheet.png", np.uint8, 4).tobytes() == b"\x89PNG"
    assert prompts == [(1, demo.LEFT)]
    (tmp_path / "text.mp4").write_text("mine")
    assert run(f"--out={tmp_path}", "--num_frames=33") == 1
    assert "text.mp4" in capsys.readouterr().err
    assert (tmp_path / "text.mp4").read_text() == "mine"
