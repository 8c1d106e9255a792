"""Saving a video in one call."""

import numpy as np
import pytest
from films import numbered, read_number

from helios_jax.media.decoding import read_frames
from helios_jax.media.saving import save_video


def test_every_frame_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("helios_jax.media.saving._FRAMES_PER_WRITE", 24)
    path = save_video(tmp_path / "new" / "clip.mp4", numbered(60), fps=30)
    assert path == tmp_path / "new" / "clip.mp4"
    assert [read_number(frame) for frame in read_frames(path)] == list(range(60))
    assert list(path.parent.iterdir()) == [path]


def test_floats_are_rounded_to_levels(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (3, 16, 32, 3), dtype=np.uint8)
    files = [save_video(tmp_path / "a.mp4", levels), save_video(tmp_path / "b.mp4", levels / np.float32(255))]
    for a, b in zip(*map(read_frames, files), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 3, 16, 32, 3), np.uint8), r"a batch of 2 videos: save one at a time, frames\[0\]"),
        (np.zeros((16, 32, 3), np.uint8), r"need \[F, H, W, 3\]"),
        (np.zeros((0, 16, 32, 3), np.uint8), r"need \[F, H, W, 3\]"),
        (np.zeros((3, 16, 32, 4), np.uint8), r"need \[F, H, W, 3\]"),
        (np.zeros((3, 15, 32, 3), np.uint8), "even sides"),
        (np.full((3, 16, 32, 3), -0.5, np.float32), r"must lie in \[0, 1\]"),
        (np.full((3, 16, 32, 3), np.nan, np.float32), r"must lie in \[0, 1\]"),
        (np.zeros((3, 16, 32, 3), np.int32), "need uint8, or float32"),
        ("frames.npy", r"got str, need an array of pixels \[F, H, W, 3\]"),
    ],
)
def test_what_is_no_video_is_refused_and_leaves_nothing(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        save_video(tmp_path / "clip.mp4", frames)
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept(tmp_path):
    (tmp_path / "clip.mp4").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"clip\.mp4"):
            save_video(tmp_path / "clip.mp4", numbered(3), overwrite=overwrite)
    assert (tmp_path / "clip.mp4").read_text() == "precious"
