"""The demo, without its sampling: what it writes, and what it leaves alone."""

import pytest

from helios_jax import demo, sample


def run(*arguments: str) -> int:
    return demo.main(demo._parse(["demo", *arguments]))


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The commands that the demo would run."""
    seen: list[list[str]] = []

    def parse(argv):
        seen.append(argv)
        return argv

    monkeypatch.setattr(sample, "parse", parse)
    monkeypatch.setattr(sample, "main", lambda args: 0)
    return seen


def test_a_second_run_uses_the_checkpoint_of_the_first(tmp_path, commands, capsys):
    out = tmp_path / "with space"
    for text in ("wrote a small checkpoint", "using the small checkpoint"):
        assert run(f"--out={out}", "--num_frames=33") == 0
        shown = capsys.readouterr().out
        assert text in shown
        assert f"'--video={out}/clip.mp4'" in shown  # the printed command is safe in a shell
    assert commands[0] == commands[1]
    assert "--num_frames=33" in commands[0]


def test_a_folder_of_the_user_stays(tmp_path, commands, capsys):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights").write_text("mine")
    assert run(f"--out={tmp_path}") == 1
    assert "checkpoint exists and is not a finished checkpoint of this demo" in capsys.readouterr().err
    assert (tmp_path / "checkpoint" / "weights").read_text() == "mine"
    assert commands == []


def test_a_clip_of_the_user_stays(tmp_path, commands, capsys):
    (tmp_path / "clip.mp4").write_text("mine")
    assert run(f"--out={tmp_path}") == 1
    assert "clip.mp4" in capsys.readouterr().err
    assert (tmp_path / "clip.mp4").read_text() == "mine"
