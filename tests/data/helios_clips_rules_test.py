"""Metadata of clips, and their buckets."""

import json

import pytest

from helios_jax.data.helios_clips import (
    LENGTHS,
    RESOLUTIONS,
    Bucket,
    ClipError,
    ClipMetadata,
    ClipRules,
    read_clip_list,
)

ENTRY = {
    "path": "a/b.mp4",
    "cut": [7, 207],
    "crop": [0, 832, 0, 480],
    "fps": 24.0,
    "num_frames": 200,
    "resolution": {"height": 480, "width": 832},
    "cap": ["A fox.", "Another caption."],
}


def clip(num_frames: int = 200, height: int = 480, width: int = 832) -> ClipMetadata:
    resolution = {"height": height, "width": width}
    return ClipMetadata.from_json(
        {**ENTRY, "cut": [7, 7 + num_frames], "crop": [0, width, 0, height], "resolution": resolution}
    )


def test_an_entry_of_a_list():
    read = ClipMetadata.from_json(ENTRY)
    assert read == ClipMetadata(
        path="a/b.mp4", caption="A fox.", cut=(7, 207), crop=(0, 832, 0, 480), height=480, width=832, fps=24.0
    )
    assert read.num_frames == 200
    assert read.name == "a/b.mp4[7:207]"
    assert ClipMetadata.from_json({**ENTRY, "cap": "A fox."}) == read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cap": []}, "a/b.mp4 has no caption"),
        ({"cap": ["  "]}, "a/b.mp4 has no caption"),
        ({"cap": None}, "cap is missing"),
        ({"cap": [3]}, "cap must be a text or a list of texts"),
        ({"cut": [7, 7]}, r"cut \[7, 7\] is not \[start, end\)"),
        ({"cut": [-1, 7]}, r"cut \[-1, 7\]"),
        ({"cut": [1, 2, 3]}, "cut must be 2 integers"),
        ({"cut": [0.5, 7]}, "cut must be 2 integers"),
        ({"crop": [0, 833, 0, 480]}, "0 <= x0 < x1 <= 832"),
        ({"crop": [0, 832, 480, 480]}, "0 <= y0 < y1 <= 480"),
        ({"resolution": None}, "resolution is missing"),
        ({"resolution": {"height": 480}}, "width is missing"),
        ({"fps": "24"}, "fps has the wrong type, '24'"),
        ({"fps": 0}, "fps must be positive"),
        ({"path": ""}, "path is empty"),
        ({"path": None}, "path is missing"),
    ],
)
def test_wrong_entries_are_explained(change, message):
    with pytest.raises(ClipError, match=message) as caught:
        ClipMetadata.from_json({**ENTRY, **change})
    assert caught.value.problem == "metadata"


def test_lists_are_read(tmp_path):
    file = tmp_path / "clips.json"
    file.write_text(json.dumps([ENTRY, 5]))
    assert read_clip_list(file) == [ENTRY, 5]
    for content, message in (("[", "not valid JSON"), ("{}", "JSON list"), ("[]", "at least one clip")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_clip_list(file)
    with pytest.raises(FileNotFoundError, match="no list of clips"):
        read_clip_list(tmp_path / "none.json")


def test_published_tables():
    steps = [*range(21, 182, 20), 193, *range(221, 502, 20)]
    assert len(LENGTHS) == 25
    assert list(LENGTHS) == steps
    assert all(length % 4 == 1 for length in LENGTHS)
    assert len(RESOLUTIONS) == 11
    assert sorted(RESOLUTIONS) == sorted((width, height) for height, width in RESOLUTIONS)


@pytest.mark.parametrize(
    ("frames", "length"), [(121, 121), (140, 121), (192, 181), (193, 193), (220, 193), (221, 221), (9000, 501)]
)
def test_lengths_are_rounded_down(frames, length):
    assert ClipRules().bucket(clip(frames)).num_frames == length


@pytest.mark.parametrize(
    ("height", "width", "nearest"),
    [
        (480, 832, (384, 640)),
        (720, 1280, (384, 640)),
        (1280, 720, (640, 384)),
        (480, 640, (448, 576)),
        (1080, 1080, (512, 512)),
        (800, 1200, (512, 768)),
        (500, 1000, (384, 768)),
        (804, 1920, (320, 768)),
        (1920, 804, (768, 320)),
    ],
)
def test_the_nearest_aspect_is_chosen(height, width, nearest):
    assert ClipRules().bucket(clip(height=height, width=width)) == Bucket(
        num_frames=193, height=nearest[0], width=nearest[1]
    )


def test_the_crop_decides():
    cropped = ClipMetadata.from_json({**ENTRY, "crop": [100, 580, 0, 480]})
    assert ClipRules().bucket(cropped) == Bucket(num_frames=193, height=512, width=512)


def test_short_clips_are_dropped_unless_a_length_is_fixed():
    with pytest.raises(ClipError, match="has 120 frames, at least 121") as caught:
        ClipRules().bucket(clip(120))
    assert caught.value.problem == "short"
    assert ClipRules(num_frames=81).bucket(clip(81)).num_frames == 81
    assert ClipRules(num_frames=81).bucket(clip(500)).num_frames == 81
    with pytest.raises(ClipError, match="has 80 frames, at least 81"):
        ClipRules(num_frames=81).bucket(clip(80))


def test_one_resolution_only():
    rules = ClipRules(single_resolution=(384, 640))
    assert rules.bucket(clip()).width == 640
    with pytest.raises(ClipError, match="nearest to 512 x 512; wanted is 384 x 640 only") as caught:
        rules.bucket(clip(height=500, width=500))
    assert caught.value.problem == "resolution"


def test_impossible_rules_are_refused():
    with pytest.raises(ValueError, match="must not be below the first"):
        ClipRules(min_frames=20)
    with pytest.raises(ValueError, match="must rise"):
        ClipRules(lengths=(33, 21))
    with pytest.raises(ValueError, match="none of"):
        ClipRules(single_resolution=(100, 100))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ClipRules(num_frames=0)
