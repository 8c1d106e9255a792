"""Names of outputs, and what may be written over: nothing that this program did not write."""

import os
import pathlib

import numpy as np
import pytest

from helios_jax.media.contact_sheet import ContactSheet
from helios_jax.media.video_writer import VideoWriter
from helios_jax.sample.outputs import (
    Outputs,
    check_apart,
    check_distinct,
    check_outputs,
    remove_earlier,
    set_aside,
)


def outputs(path: pathlib.Path) -> Outputs:
    return Outputs(video=path)


def make_ours(path: pathlib.Path) -> Outputs:
    """The video, sheet and record of an earlier run."""
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    made = outputs(path)
    with VideoWriter(made.video) as video, ContactSheet(made.sheet) as sheet:
        video.write(frames)
        sheet.write(frames)
    made.record.write_text('{"helios_jax": "0.2"}')
    return made


def test_names():
    made = outputs(pathlib.Path("a/fox.mp4"))
    assert [path.as_posix() for path in made.all] == [
        "a/fox.mp4",
        "a/fox.sheet.png",
        "a/fox.helios.json",
        "a/fox.unfinished.json",
    ]


@pytest.mark.parametrize("name", ["fox.mp4", "fox.sheet.png", "fox.helios.json", "fox.unfinished.json"])
@pytest.mark.parametrize("kind", ["text", "json", "folder", "dangling link", "link", "pipe"])
def test_what_others_wrote_is_refused(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "text":
        path.write_text("mine")
    elif kind == "json":
        path.write_text('{"frames": 3}')
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("elsewhere")
        if kind == "link":
            (tmp_path / "elsewhere").write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name} (is a folder|was not written by helios-sample)"):
        check_outputs(outputs(tmp_path / "fox.mp4"))


def test_names_of_others_are_free(tmp_path):
    for name in ("fox.png", "fox.json", "fox.mp4.part"):
        (tmp_path / name).mkdir()
    check_outputs(outputs(tmp_path / "fox.mp4"))


def test_our_own_files_are_removed_and_other_names_of_them_stay(tmp_path):
    made = make_ours(tmp_path / "fox.mp4")
    check_outputs(made)
    kept = made.video.read_bytes()
    os.link(made.video, tmp_path / "archive.mp4")
    made.sheet.rename(tmp_path / "archive.png")
    made.sheet.symlink_to("archive.png")
    remove_earlier(made)
    assert not any(os.path.lexists(path) for path in made.all)
    assert (tmp_path / "archive.mp4").read_bytes() == kept
    assert (tmp_path / "archive.png").exists()


def test_unfinished_work_is_set_aside_under_free_names(tmp_path):
    (tmp_path / "fox.interrupted1.sheet.png").write_text("mine")
    made = make_ours(tmp_path / "fox.mp4")
    video, sheet = made.video.read_bytes(), made.sheet.read_bytes()
    renamed = set_aside(made)
    assert [(old, new.name) for old, new in renamed] == [
        (made.video, "fox.interrupted2.mp4"),
        (made.sheet, "fox.interrupted2.sheet.png"),
    ]
    assert [new.read_bytes() for _, new in renamed] == [video, sheet]
    assert (tmp_path / "fox.interrupted1.sheet.png").read_text() == "mine"


def test_an_empty_video_is_ours_if_its_claim_is(tmp_path):
    """What a process leaves that is killed before the first byte of the video."""
    made = outputs(tmp_path / "fox.mp4")
    made.video.touch()
    with pytest.raises(FileExistsError, match="was not written by helios-sample"):
        check_outputs(made)
    made.claim.write_text('{"helios_jax": "0.2"}')
    check_outputs(made)
    assert set_aside(made) == []
    assert [path.name for path in tmp_path.iterdir()] == ["fox.unfinished.json"]


def test_files_of_others_are_neither_removed_nor_renamed(tmp_path):
    made = outputs(tmp_path / "fox.mp4")
    made.video.write_text("mine")
    made.sheet.write_text("mine")
    remove_earlier(made)
    set_aside(made)
    assert (made.video.read_text(), made.sheet.read_text()) == ("mine", "mine")


@pytest.mark.parametrize(("length", "fits"), [(224, True), (225, False), (251, False)])
def test_length_of_names(tmp_path, length, fits):
    """The longest ending is .interrupted999.unfinished.json with 31 bytes, of 255 in all."""
    made = outputs(tmp_path / ("é" * (length // 2) + "x" * (length % 2) + ".mp4"))
    if fits:
        check_outputs(made)
    else:
        with pytest.raises(ValueError, match="bytes too long"):
            check_outputs(made)


def test_folders(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    check_outputs(outputs(tmp_path / "new" / "er" / "fox.mp4"))
    assert not (tmp_path / "new").exists()
    for path in (tmp_path / "file" / "fox.mp4", tmp_path / "file" / "deeper" / "fox.mp4"):
        with pytest.raises(NotADirectoryError, match="file is not a folder"):
            check_outputs(outputs(path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="no permission to write"):
        check_outputs(outputs(tmp_path / "fox.mp4"))


def test_videos_that_share_a_file(tmp_path):
    def named(*names: str) -> list[tuple[str, Outputs]]:
        return [(f"line {i}", outputs(tmp_path / f"{name}.mp4")) for i, name in enumerate(names)]

    check_distinct(named("a", "a.sheet", "a.helios", "b"))
    for names in (("a", "b", "a"), ("a", "A"), ("straße", "STRASSE"), ("e\u0301", "\u00e9")):
        with pytest.raises(ValueError, match="would both write"):
            check_distinct(named(*names))


def test_inputs_are_not_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    car = make_ours(tmp_path / "car.mp4")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.mp4").symlink_to("car.mp4")
    os.link("car.mp4", "hard.mp4")
    check_apart({"--video": pathlib.Path("hard.mp4")}, [outputs(tmp_path / "other.mp4")])
    for path in ("car.mp4", "./folder/../car.mp4", "link.mp4", "hard.mp4", "car.sheet.png", "car.helios.json"):
        with pytest.raises(ValueError, match=r"--video=.* is the same file as the output"):
            check_apart({"--video": pathlib.Path(path)}, [outputs(tmp_path / "other.mp4"), car])
    # An output that does not exist yet, by another path.
    with pytest.raises(ValueError, match="is the same file"):
        check_apart({"--image": pathlib.Path("new.sheet.png")}, [outputs(tmp_path / "folder" / ".." / "new.mp4")])
