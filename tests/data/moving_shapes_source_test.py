"""Scenes as a sequence."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helios_jax.data.moving_shapes import MovingShapes, caption, render, sample_scene
from helios_jax.data.moving_shapes.__main__ import main, parse
from helios_jax.data.moving_shapes.styles import check_style

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


def test_scenes_of_a_style():
    textured = MovingShapes(seed=6, size=3, frames=12, height=64, width=64, style="textured")
    scene = sample_scene(6, 2, style="textured")
    assert textured.scene(2) == scene
    np.testing.assert_array_equal(textured[2]["frames"], render(scene, 12, 64, 64))
    assert textured[2]["caption"] == caption(scene)
    assert textured.scene(2) != SOURCE.scene(2)
    with pytest.raises(ValueError, match="style must be one of plain, textured, got 'odd'"):
        check_style("odd")


def test_scenes_are_drawn_as_a_picture(tmp_path, capsys):
    flags = ["--style=textured", "--scenes=2", "--frames=60", "--columns=5", "--size=64x72", "--seed=40"]
    assert main(parse(["moving_shapes", *flags, f"--out={tmp_path / 'new' / 'scenes.png'}"])) == 0
    picture = np.asarray(Image.open(tmp_path / "new" / "scenes.png"))
    frames = np.stack([render(sample_scene(40, i, style="textured"), range(0, 60, 12), 64, 72) for i in range(2)])
    np.testing.assert_array_equal(picture, np.concatenate([np.concatenate(list(row), 1) for row in frames]))
    printed = capsys.readouterr().out
    assert caption(sample_scene(40, 1, style="textured")) in printed
    assert "frames 0, 12, 24, 36, 48" in printed
    for bad in ("64", "60x64", "64xa"):
        with pytest.raises(SystemExit):
            parse(["moving_shapes", "--out=a.png", f"--size={bad}"])
    assert "not HxW with multiples of 8" in capsys.readouterr().err


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
