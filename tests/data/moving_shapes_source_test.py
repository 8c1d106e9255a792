"""Scenes as a sequence, and as a TFDS data set."""

import subprocess
import sys

import numpy as np
import pytest

from helios_jax.data.helios_clips import decode_clip, open_clips
from helios_jax.data.moving_shapes import MovingShapes, build, caption, render, sample_scene
from helios_jax.data.moving_shapes.builder import encode_lossless
from helios_jax.media.reading import load_video

SOURCE = MovingShapes(seed=6, size=5, frames=12, height=48, width=64)


def test_items_are_rendered_scenes():
    assert len(SOURCE) == 5
    item = SOURCE[3]
    scene = sample_scene(6, 3)
    assert item["caption"] == caption(scene)
    np.testing.assert_array_equal(item["frames"], render(scene, 12, 48, 64))
    np.testing.assert_array_equal(SOURCE[-2]["frames"], item["frames"])
    assert len(SOURCE.scene(0).description.shapes) <= 3
    pairs = MovingShapes(seed=6, size=9, frames=1, height=64, width=64, num_shapes=2)
    assert {len(pairs.scene(i).description.shapes) for i in range(9)} == {2}
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"scene {index} of 5"):
            SOURCE[index]


def test_processes_render_what_one_does():
    frames = np.stack([SOURCE[index]["frames"] for index in range(5)])
    np.testing.assert_array_equal(SOURCE.render_all(), frames)
    np.testing.assert_array_equal(SOURCE.render_all(processes=2), frames)


def test_grain_reads_it():
    import grain

    items = grain.MapDataset.source(SOURCE).shuffle(seed=0).to_iter_dataset().batch(2)
    batch = next(iter(items))
    assert batch["frames"].shape == (2, 12, 48, 64, 3)


def test_the_data_set_holds_the_very_pixels(tmp_path):
    folder = build(SOURCE, tmp_path)
    assert folder == tmp_path / "moving_shapes" / "1.0.0"
    records = open_clips(folder)
    assert len(records) == 5
    for index, record in enumerate(records):
        np.testing.assert_array_equal(decode_clip(record, epoch=4, index=index), SOURCE[index]["frames"])
        assert record["caption"].decode() == SOURCE[index]["caption"]
        assert record["name"].decode() == f"moving_shapes-6-{index}"
    with pytest.raises(FileExistsError, match="choose another folder"):
        build(SOURCE, tmp_path)


def test_lossless_files_are_small_and_exact(tmp_path):
    frames = render(sample_scene(0, 1), 33, 64, 64)
    path = tmp_path / "scene.mp4"
    path.write_bytes(encode_lossless(frames))
    np.testing.assert_array_equal(load_video(path, 64, 64), frames)
    assert path.stat().st_size < frames.nbytes / 10


def test_tensorflow_is_not_needed(tmp_path):
    code = f"""
import sys
from helios_jax.data.moving_shapes import MovingShapes, build
from helios_jax.data.helios_clips import open_clips
folder = build(MovingShapes(seed=0, size=2, frames=3, height=16, width=16), {str(tmp_path)!r})
print(len(open_clips(folder)), "tensorflow" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "2 False"


def test_the_world_needs_no_data_library():
    code = "import sys, helios_jax.data.moving_shapes as m; m.score, m.render, m.MovingShapes; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "helios_jax.data.moving_shapes.scoring" in loaded
    assert not {"tensorflow_datasets", "grain", "av"} & set(loaded)
