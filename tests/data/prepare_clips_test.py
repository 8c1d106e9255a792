"""Where clips come from: lists, folders, cuts, crops."""

import json
import pathlib

import numpy as np
import pytest

from helios_jax.data.moving_shapes.rendering import render
from helios_jax.data.moving_shapes.styles import sample_scene
from helios_jax.data.prepare.clip_lists import clips_from_folder, clips_from_json
from helios_jax.data.prepare.clips import ShapesClip
from helios_jax.data.prepare.file_clips import FileClip, LeftOutError, ReadOptions
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
    return FileClip(uid="a", caption="A ramp.", stored_fps=24.0, path=path, **options)


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
    got = clip(video, crop=(12, 36, 0, 32), cut=(3, 4), options=ReadOptions(fit="crop")).read((48, 48), 501)
    square = Image.fromarray(np.ascontiguousarray(whole[3, 4:28, 12:36]))
    wanted = np.asarray(square.resize((48, 48), Image.Resampling.BILINEAR))
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
    assert (b.uid, b.caption, b.stored_fps, b.crop) == ("a.mp4[7:40]", "Later.", 0.0, None)
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
        ([{"path": "a.mp4", "cut": [0, True]}], ValueError, "clip 0 of .*: cut=True must be a whole number"),
        ([{"path": "a.mp4", "cut": [0, 3.0]}], ValueError, "clip 0 of .*: cut=3.0 must be a whole number"),
        ([{"path": "a.mp4", "crop": "0123"}], ValueError, "clip 0 of .*: crop must be 4 integers, got '0123'"),
        ([{"path": "a.mp4", "fps": "24"}], ValueError, "clip 0 of .*: fps='24' must be a finite number"),
        ('[{"path": "a.mp4", "fps": NaN}]', ValueError, "clip 0 of .*: fps=nan must be a finite number"),
        ([{"path": "a.mp4", "cap": 5}], ValueError, "clip 0 of .*: cap must be a text or a list of texts, got 5"),
        ([{"path": "a.mp4", "cap": ["a", None]}], ValueError, "clip 0 of .*: cap must be a text or a list"),
        ([{"path": "../a.mp4"}], ValueError, r"clip 0 of .*: path='\.\./a\.mp4' leads out of .*; give --root"),
        ([{"path": "b/../../a.mp4"}], ValueError, "leads out of"),
        ([{"path": "/etc/passwd"}], ValueError, "path='/etc/passwd' leads out of"),
        ([{"path": "~/a.mp4"}], ValueError, "path='~/a.mp4' leads out of"),
        ([{"path": "a\0.mp4"}], ValueError, "clip 0 of .*: path=.* is not a path"),
        ([{"path": ""}], ValueError, "clip 0 of .*: path='' is not a path"),
        ("null", ValueError, "must hold a list"),
        ("[" * 100_000, ValueError, "is not valid JSON"),
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


def test_lists_in_other_encodings(tmp_path):
    (tmp_path / "clips.json").write_bytes('[{"path": "ä.mp4"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"clips\.json is not UTF-8: .* at byte 11"):
        clips_from_json(tmp_path / "clips.json")


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
    with pytest.raises(FileNotFoundError, match="no video in"):
        clips_from_folder(tmp_path / "nothing")


def test_all_kinds_of_videos_in_a_folder(tmp_path, video):
    for name in ("a.mp4", "a.MOV", "b.MP4", "c.WebM", "d.mkv", "e.m4v", "f.AVI", "._g.mp4", "h.txt", "i.png"):
        (tmp_path / name).symlink_to(video)
    (tmp_path / "a.txt").write_text("Both.")
    found = {clip.uid: clip.caption for clip in clips_from_folder(tmp_path)}
    assert found == {"a.MOV": "Both.", "a.mp4": "Both.", "b": "", "c": "", "d": "", "e": "", "f": ""}
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"the caption .*b\.txt is not UTF-8"):
        clips_from_folder(tmp_path)


def test_aspects_are_sorted_as_published(tmp_path):
    """A portrait clip is nearer to 640 x 384, so a job of 384 x 640 leaves it out; the other ways take it."""
    with VideoWriter(tmp_path / "portrait.mp4") as writer:
        writer.write(np.full((3, 96, 54, 3), 200, np.uint8))
    size = (24, 40)
    with pytest.raises(
        LeftOutError, match=r"its aspect, 96x54, is nearer to 640x384 than to 24x40; to use it, pass --fit=crop"
    ):
        clip(tmp_path / "portrait.mp4").read(size, 3)
    read = {
        fit: clip(tmp_path / "portrait.mp4", options=ReadOptions(fit=fit)).read(size, 3)
        for fit in ("crop", "pad", "stretch")
    }
    assert all(pixels.shape == (3, *size, 3) for pixels in read.values())
    assert abs(read["crop"].astype(int) - 200).max() <= 2
    assert abs(read["stretch"].astype(int) - 200).max() <= 2
    columns = read["pad"][0, 12, :, 0] > 100
    assert columns.tolist() == [13 <= x < 27 for x in range(40)]  # 24 * 54 / 96 = 13.5 columns, rounded to 14
    assert clip(tmp_path / "portrait.mp4").read((40, 24), 3).shape == (3, 40, 24, 3)


def test_rates_are_resampled(tmp_path):
    """60 frames at 30 per second are 48 at 24; a cut counts stored frames."""
    with VideoWriter(tmp_path / "a.mp4", fps=30) as writer:
        writer.write(frames(60))
    whole = load_video(tmp_path / "a.mp4", 32, 48)
    nearest = [round(1.25 * k - 1e-9) for k in range(48)]
    taken = clip(tmp_path / "a.mp4")
    np.testing.assert_array_equal(taken.read((32, 48), 501), whole[nearest])
    assert taken.fps == 24
    np.testing.assert_array_equal(clip(tmp_path / "a.mp4", cut=(10, 40)).read((32, 48), 7), whole[10:][nearest[:7]])
    stored = clip(tmp_path / "a.mp4", options=ReadOptions(video_fps=None))
    np.testing.assert_array_equal(stored.read((32, 48), 501), whole)


def test_moving_shapes():
    shapes = ShapesClip(seed=3, index=7, frames=40)
    np.testing.assert_array_equal(shapes.read((32, 64), 33), render(sample_scene(3, 7), 33, 32, 64))
    assert shapes.uid == "moving_shapes-3-7"
    assert shapes.caption != ShapesClip(seed=3, index=8, frames=40).caption
    assert shapes.aspect() is None
    textured = ShapesClip(seed=3, index=7, frames=40, num_shapes=2, style="textured")
    scene = sample_scene(3, 7, num_shapes=2, style="textured")
    np.testing.assert_array_equal(textured.read((32, 64), 33), render(scene, 33, 32, 64))
    assert textured.uid == "moving_shapes-textured-2-3-7"
