"""Records become frames: which ones, and which pixels of them."""

import numpy as np
import pytest

from helios_jax.data.helios_clips import ClipError, decode_clip, read_frames
from helios_jax.data.helios_clips.decode import centre_crop
from helios_jax.data.moving_shapes import render, sample_scene
from helios_jax.data.moving_shapes.builder import encode_lossless
from helios_jax.media.video_writer import VideoWriter

HEIGHT, WIDTH = 48, 80


def numbered(count: int) -> np.ndarray:
    """Frames that show their number as brightness, and a ramp to the right."""
    ramp = np.arange(WIDTH, dtype=np.uint8)
    return np.stack([np.broadcast_to(ramp[None, :, None] + np.uint8(2 * n), (HEIGHT, WIDTH, 3)) for n in range(count)])


@pytest.fixture(scope="module")
def video() -> bytes:
    return encode_lossless(numbered(30))


def record(video: bytes, **values: object) -> dict:
    whole = {"cut": (0, 30), "crop": (0, WIDTH, 0, HEIGHT), "num_frames": 30, "height": HEIGHT, "width": WIDTH}
    return {"video": video, "name": b"clip", **whole, **values}


def test_a_whole_clip(video):
    np.testing.assert_array_equal(decode_clip(record(video), epoch=0, index=0), numbered(30))


def test_the_start_is_drawn_within_the_cut(video):
    clip = record(video, cut=(5, 25), num_frames=17)
    starts = []
    for epoch in range(60):
        frames = decode_clip(clip, epoch=epoch, index=3)
        assert frames.shape == (17, HEIGHT, WIDTH, 3)
        starts.append(int(frames[0, 0, 0, 0]) // 2)
        np.testing.assert_array_equal(frames, numbered(30)[starts[-1] : starts[-1] + 17])
    assert set(starts) == {5, 6, 7, 8}
    again = [int(decode_clip(clip, epoch=epoch, index=3)[0, 0, 0, 0]) // 2 for epoch in range(10)]
    assert again == starts[:10]
    others = [int(decode_clip(clip, epoch=epoch, index=4)[0, 0, 0, 0]) // 2 for epoch in range(60)]
    assert others != starts


def test_the_crop_comes_first_and_then_the_middle(video):
    # Columns 20 to 60 and rows 0 to 40, then 32 x 40 of them around the middle: rows 4 to 36.
    frames = decode_clip(record(video, crop=(20, 60, 0, 40), height=32, width=40), epoch=0, index=0)
    np.testing.assert_array_equal(frames, numbered(30)[:, 4:36, 20:60])


def test_resizing_averages(video):
    # Halved by a triangle filter of four pixels: the ramp 20, 21, ... becomes 20.5, 22.5, ... except at the ends.
    frames = decode_clip(record(video, crop=(20, 60, 0, 40), height=20, width=20), epoch=0, index=0)
    assert frames.shape == (30, 20, 20, 3)
    ramp = frames[0, 10, 2:-2, 0].astype(float)
    assert abs(ramp - (20.5 + 2 * np.arange(2, 18))).max() <= 0.5
    assert (frames[7].astype(int) - frames[0] == 14).all()


@pytest.mark.parametrize(
    ("crop", "size", "box"),
    [
        ((0, 832, 0, 480), (384, 640), (16, 0, 816, 480)),
        ((0, 640, 0, 384), (384, 640), (0, 0, 640, 384)),
        ((0, 1080, 0, 1920), (384, 640), (0, 636, 1080, 1284)),
        ((10, 110, 20, 121), (512, 512), (10, 20, 110, 120)),
    ],
)
def test_the_largest_box_in_the_middle(crop, size, box):
    assert centre_crop(crop, size) == box


def test_ordinary_files_lose_little(tmp_path):
    frames = render(sample_scene(0, 2), 12, 64, 96)
    with VideoWriter(tmp_path / "clip.mp4", crf=1) as writer:
        writer.write(frames)
    read = np.stack(list(read_frames(tmp_path / "clip.mp4", 2, 9)))
    assert abs(read.astype(int) - frames[2:9]).mean() < 2  # chroma is stored at half the size
    clip = record((tmp_path / "clip.mp4").read_bytes(), cut=(2, 9), crop=(0, 96, 0, 64), num_frames=7)
    np.testing.assert_array_equal(decode_clip({**clip, "height": 64, "width": 96}, epoch=0, index=0), read)


def test_what_cannot_be_read_is_explained(video, tmp_path):
    cases = {
        "clip does not have the frames 0 to 40: 30 of them are there": record(video, cut=(0, 40), num_frames=40),
        "clip is damaged or no video: it has no video stream": record(video[: len(video) * 2 // 3]),
        "clip is damaged or no video": record(b"no video at all"),
        "clip has 30 frames, 31 are wanted": record(video, num_frames=31),
    }
    for message, clip in cases.items():
        with pytest.raises(ClipError, match=message):
            decode_clip(clip, epoch=0, index=0)
    with pytest.raises(ClipError, match="there is no file") as caught:
        list(read_frames(tmp_path / "none.mp4", 0, 1))
    assert caught.value.problem == "missing"


def test_damage_within_a_file_is_noticed(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4") as writer:  # its index comes first
        writer.write(render(sample_scene(0, 3), 40, 64, 96))
    content = (tmp_path / "clip.mp4").read_bytes()
    assert len(list(read_frames(content, 0, 40))) == 40
    with pytest.raises(ClipError, match=r"clip\[0:40\] is damaged or cut off"):
        list(read_frames(content[: len(content) * 3 // 4], 0, 40, name="clip[0:40]"))
    middle = len(content) * 3 // 4
    with pytest.raises(ClipError, match="damaged"):
        list(read_frames(content[:middle] + bytes(64) + content[middle + 64 :], 0, 40))
