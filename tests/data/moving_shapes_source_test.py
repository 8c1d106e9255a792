"""Scenes as a sequence."""

import subprocess
import sys

import numpy as np
import pytest

from helios_jax.data.moving_shapes import MovingShapes, caption, render, sample_scene

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


def test_the_world_needs_no_data_library():
    code = "import sys, helios_jax.data.moving_shapes as m; m.score, m.render, m.MovingShapes; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "helios_jax.data.moving_shapes.scoring" in loaded
    assert not {"tensorflow_datasets", "grain", "av"} & set(loaded)
