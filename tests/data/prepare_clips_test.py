"""Where clips come from: lists, folders, cuts, crops."""

import json
import pathlib

import numpy as np
import pytest

from helios_jax.data.moving_shapes.rendering import render
from helios_jax.data.moving_shapes.world import sample_scene
from helios_jax.data.prepare.clips import FileClip, ShapesClip, clips_from_folder, clips_from_json
from helios_jax.media.files import ClipError
from helios_jax.media.reading import load_video
from helios_jax.media.video_writer import VideoWriter


def frames(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """A clip that brightens with time, from left to right and from top to bottom."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    grey = np.stack([2 * t + x, 2 * t + y, 2 * t + (x + y) // 2], axis=-1)
    return grey.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    with VideoWriter(path) as writer:
        writer.write(frames(40))
    return path


def clip(path: pathlib.Path, **options) -> FileClip:
    return FileClip(uid="a", caption="A ramp.", fps=24.0, path=path, **options)


@pytest.mark.parametrize(
    ("cut", "limit", "start", "stop"),
    [(None, 501, 0, 40), (None, 33, 0, 33), ((0, 40), 501, 0, 40), ((5, 38), 501, 5, 38), ((5, 38), 10, 5, 15)],
)
def test_cuts(video, cut, limit, start, stop):
    whole = load_video(video, 32, 48)
    np.testing.assert_array_equal(clip(video, cut=cut).read((32, 48), limit), whole[start:stop])


def test_crops_and_sizes(video):
    from PIL import Image

    whole = load_video(video, 32, 48)
    # 48 x 32 is cropped to 24 x 32, then to the middle square of 24 x 24, then enlarged.
    got = clip(video, crop=(12, 36, 0, 32), cut=(3, 4)).read((48, 48), 501)
    square = Image.fromarray(np.ascontiguousarray(whole[3, 4:28, 12:36]))
    wanted = np.asarray(square.resize((48, 48), Image.Resampling.LANCZOS))
    # The box of a resize takes pixels beyond its border into account, a cropped picture has none.
    assert np.abs(got[0].astype(int) - wanted).max() <= 3
    assert np.abs(got[0].astype(int) - wanted)[4:-4, 4:-4].max() <= 1


def test_aspect(video):
    assert clip(video).aspect() == 48 / 32
    assert clip(video, crop=(0, 30, 10, 20)).aspect() == 3.0


def test_bad_files_are_named(video, tmp_path):
    missing = clip(tmp_path / "b.mp4")
    with pytest.raises(ClipError, match=r"there is no file .*b\.mp4"):
        missing.read((32, 48), 501)
    text = tmp_path / "c.mp4"
    text.write_text("no video" * 100)
    with pytest.raises(ClipError, match=r"cannot read the video .*c\.mp4: Invalid data"):
        clip(text).read((32, 48), 501)
    cut_off = tmp_path / "d.mp4"
    cut_off.write_bytes(video.read_bytes()[:-500])
    with pytest.raises(ClipError, match=r"d\.mp4 is damaged or cut off"):
        clip(cut_off).read((32, 48), 501)
    with pytest.raises(ClipError, match=r"ends after 40 frames, the cut is \[30, 50\]"):
        clip(video, cut=(30, 50)).read((32, 48), 501)
    with pytest.raises(ClipError, match=r"frames of 32 x 48, the crop .* is \[0, 49, 0, 32\]"):
        clip(video, crop=(0, 49, 0, 32)).read((32, 48), 501)


def write_list(folder: pathlib.Path, entries: object) -> pathlib.Path:
    file = folder / "clips.json"
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return file


def test_json_lists(video):
    entries = [
        {
            "cut": [0, 33],
            "crop": [0, 48, 0, 32],
            "fps": 24.0,
            "num_frames": 40,
            "resolution": {"height": 32, "width": 48},
            "cap": [" A ramp. ", "Other words."],
            "path": "a.mp4",
        },
        {"path": "a.mp4", "cut": [7, 40], "cap": "Later."},
        {"path": "missing.mp4"},
    ]
    a, b, c = clips_from_json(write_list(video.parent, entries))
    assert (a.uid, a.caption, a.fps, a.path) == ("a.mp4[0:33]", "A ramp.", 24.0, video)
    assert (a.cut, a.crop) == ((0, 33), (0, 48, 0, 32))
    assert (b.uid, b.caption, b.fps, b.crop) == ("a.mp4[7:40]", "Later.", 0.0, None)
    assert (c.uid, c.caption, c.cut) == ("missing.mp4", "", None)
    moved = video.parent / "elsewhere"
    moved.mkdir()
    assert clips_from_json(write_list(moved, entries), root=video.parent) == [a, b, c]


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ("[{", ValueError, "is not valid JSON"),
        ({}, ValueError, "must hold a list of at least one clip"),
        ([], ValueError, "must hold a list of at least one clip"),
        ([{"path": "a.mp4"}, {"cap": "No path."}], ValueError, "clip 1 of .* must be an object with a path"),
        ([{"path": "a.mp4", "cut": [3]}], ValueError, "clip 0 of .*: cut must be 2 integers"),
        ([{"path": "a.mp4", "cut": [3, 3]}], ValueError, r"cut \[3, 3\] is not \[start, end\)"),
        ([{"path": "a.mp4", "crop": [0, 0, 0, 9]}], ValueError, r"crop \[0, 0, 0, 9\] is not"),
        ([{"path": "a.mp4"}, {"path": "a.mp4"}], ValueError, "clips 0 and 1 of .* are the same cut"),
        ([{"path": "x.mp4"}], FileNotFoundError, r"none of the 1 videos .* exists; the first would be .*x\.mp4"),
    ],
)
def test_bad_lists_are_refused(tmp_path, video, entries, error, message):
    (tmp_path / "a.mp4").symlink_to(video)
    with pytest.raises(error, match=message):
        clips_from_json(write_list(tmp_path, entries))


def test_missing_list(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a JSON list of clips, or a folder of videos"):
        clips_from_json(tmp_path / "clips.json")


def test_folders(tmp_path, video):
    (tmp_path / "b").mkdir()
    for name in ("z.mp4", "b/y.mp4"):
        (tmp_path / name).symlink_to(video)
    (tmp_path / "b" / "y.txt").write_text("A ramp.\n")
    y, z = clips_from_folder(tmp_path)
    assert (y.uid, y.caption, y.path) == ("b/y", "A ramp.", tmp_path / "b" / "y.mp4")
    assert (z.uid, z.caption) == ("z", "")
    with pytest.raises(FileNotFoundError, match="no mp4 file in"):
        clips_from_folder(tmp_path / "nothing")


def test_moving_shapes():
    shapes = ShapesClip(seed=3, index=7, frames=40)
    np.testing.assert_array_equal(shapes.read((32, 64), 33), render(sample_scene(3, 7), 33, 32, 64))
    assert shapes.uid == "moving_shapes-3-7"
    assert shapes.caption != ShapesClip(seed=3, index=8, frames=40).caption
    assert shapes.aspect() is None
