"""A list of clips becomes a data set; what cannot be used is reported and left out."""

import json
import sys

import numpy as np
import pytest

from helios_jax.data.helios_clips import (
    Bucket,
    ClipRules,
    Skipped,
    build,
    decode_clip,
    open_clips,
    open_report,
)
from helios_jax.data.moving_shapes import MovingShapes
from helios_jax.data.moving_shapes.builder import encode_lossless

RULES = ClipRules(min_frames=9, lengths=(9, 13, 17), resolutions=((32, 48), (48, 32), (32, 32)))
SOURCE = MovingShapes(seed=0, size=2, frames=18, height=32, width=48)


@pytest.fixture
def videos(tmp_path):
    for index in range(2):
        (tmp_path / f"{index}.mp4").write_bytes(encode_lossless(SOURCE[index]["frames"]))
    content = (tmp_path / "0.mp4").read_bytes()
    (tmp_path / "cut_off.mp4").write_bytes(content[: len(content) // 2])
    return tmp_path


def entry(path: str = "0.mp4", **values: object) -> dict:
    whole = {"cut": [0, 18], "crop": [0, 48, 0, 32], "resolution": {"height": 32, "width": 48}}
    return {"path": path, "fps": 24.0, "num_frames": 18, "cap": [f"This is {path}."], **whole, **values}


def write(folder, entries) -> str:
    file = folder / "clips.json"
    file.write_text(json.dumps(entries))
    return str(file)


def test_good_clips_are_kept_and_bad_ones_reported(videos):
    entries = [
        entry("1.mp4"),
        entry("cut_off.mp4"),
        entry("none.mp4"),
        entry(cut=[3, 11]),
        entry(cap=[]),
        entry(cut=[5, 20]),
        entry(resolution={"height": 32, "width": 64}),
        entry(cut=[2, 15], crop=[8, 40, 0, 32]),
    ]
    report = build(write(videos, entries), videos, videos / "out", rules=RULES)
    assert report.folder == videos / "out" / "helios_clips" / "1.0.0"
    assert report.buckets == (
        Bucket(num_frames=17, height=32, width=48),
        Bucket(num_frames=13, height=32, width=32),
    )
    assert report.skipped == (
        Skipped(
            index=1,
            problem="damaged",
            message="cut_off.mp4[0:18] is damaged or no video: Invalid data found when processing input",
        ),
        Skipped(index=2, problem="missing", message=f"none.mp4[0:18]: there is no file {videos / 'none.mp4'}"),
        Skipped(index=3, problem="short", message="0.mp4[3:11] has 8 frames, at least 9 are needed"),
        Skipped(index=4, problem="metadata", message="0.mp4 has no caption: cap must hold a text"),
        Skipped(
            index=5, problem="damaged", message="0.mp4[5:20] does not have the frames 5 to 20: 13 of them are there"
        ),
        Skipped(index=6, problem="metadata", message="0.mp4[0:18] has frames of 32 x 48, its resolution says 32 x 64"),
    )
    assert str(report).endswith("2 clips, 6 skipped (2 damaged, 2 metadata, 1 missing, 1 short)")
    assert open_report(report.folder) == report

    records = open_clips(report.folder)
    assert len(records) == 2
    assert [record["caption"].decode() for record in records] == ["This is 1.mp4.", "This is 0.mp4."]
    np.testing.assert_array_equal(decode_clip(records[1], epoch=0, index=1), SOURCE[0]["frames"][2:15, :, 8:40])
    whole = SOURCE[1]["frames"]
    frames = decode_clip(records[0], epoch=0, index=0)
    assert any((frames == whole[start : start + 17]).all() for start in (0, 1))
    assert "tensorflow" not in sys.modules


def test_grain_decodes_records(videos):
    import grain

    report = build(write(videos, [entry("0.mp4"), entry("1.mp4")]), videos, videos / "out", rules=RULES)
    dataset = grain.MapDataset.source(open_clips(report.folder)).map_with_index(
        lambda index, record: decode_clip(record, epoch=0, index=index)
    )
    assert dataset.batch(2)[0].shape == (2, 17, 32, 48, 3)


def test_a_file_with_several_cuts(videos):
    entries = [entry(cut=[0, 9]), entry(cut=[9, 18])]
    records = open_clips(build(write(videos, entries), videos, videos / "out", rules=RULES).folder)
    frames = [decode_clip(record, epoch=0, index=index) for index, record in enumerate(records)]
    np.testing.assert_array_equal(np.concatenate(frames), SOURCE[0]["frames"])


def test_nothing_is_overwritten_and_nothing_left_behind(videos):
    clips = write(videos, [entry()])
    build(clips, videos, videos / "out", rules=RULES)
    with pytest.raises(FileExistsError, match="choose another folder"):
        build(clips, videos, videos / "out", rules=RULES)
    with pytest.raises(ValueError, match=r"none of the clips of .* can be used:\n.*none.mp4"):
        build(write(videos, [entry("none.mp4")]), videos, videos / "other", rules=RULES)
    assert not list((videos / "other" / "helios_clips").iterdir())
