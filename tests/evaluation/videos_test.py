"""The description of folders of videos, and how far shapes move."""

import json

import numpy as np
import pytest

from helios_jax.data.moving_shapes import MovingShapes
from helios_jax.data.moving_shapes.world import SPEEDS
from helios_jax.evaluation import videos
from helios_jax.evaluation.moving_shapes import measure_shapes
from helios_jax.evaluation.shape_motion import displacement
from helios_jax.media.saving import save_video


def test_displacement_of_textured_shapes():
    scenes = MovingShapes(seed=1, size=6, frames=33, height=64, width=64, num_shapes=1, style="textured")
    for number in range(6):
        (shape,) = scenes.scene(number).description.shapes
        found = displacement(scenes[number]["frames"], "textured")
        assert found == pytest.approx(SPEEDS[shape.speed] / 256, rel=0.05)


@pytest.mark.parametrize("speed", ["slow", "medium", "fast"])
def test_shapes_move_as_fast_as_their_scene_says(speed):
    scenes = MovingShapes(seed=1, size=40, frames=33, height=64, width=64, num_shapes=1)
    number = next(i for i in range(40) if scenes.scene(i).description.shapes[0].speed == speed)
    assert displacement(scenes[number]["frames"]) == pytest.approx(SPEEDS[speed] / 256, rel=0.1)


def test_nothing_moves_without_shapes():
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3)).astype(np.uint8)
    assert np.isnan(displacement(noise))


def test_scenes_of_the_small_world_do_not_drift():
    scenes = MovingShapes(seed=2, size=4, frames=99, height=64, width=64)
    measured = [measure_shapes(scenes[number]["frames"]) for number in range(4)]
    found = videos.describe(measured, measured)
    assert [len(found["chunks"][name]) for name in ("brightness", "border_jump")] == [3, 3]
    assert abs(found["drift"]["brightness"]) < 0.01
    assert abs(found["chunks"]["border_jump"][1]) < 0.002
    assert found["frechet"] == pytest.approx(0, abs=1e-3)
    assert 1 / 256 <= found["displacement"] <= 4 / 256


def brightening(start, frames=12):
    levels = (start + 5 * np.arange(frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, 64, 64, 3))


def test_folders_are_described(tmp_path, capsys):
    for folder, starts in (("bright", (100, 110, 120, 130)), ("dark", (20, 30, 40, 50))):
        for number, start in enumerate(starts):
            save_video(tmp_path / folder / str(number) / "video.mp4", brightening(start), 24, crf=1)
    args = ["videos", str(tmp_path / "bright"), f"--reference={tmp_path / 'dark'}", "--chunk_frames=4"]
    args += ["--processes=1", f"--out={tmp_path / 'out.json'}"]
    assert videos.main(videos._parse(args)) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out.json").read_text())
    found = json.loads((tmp_path / "out.json").read_text())
    bright, dark = found[str(tmp_path / "bright")], found["reference"]
    assert (bright["videos"], bright["displacement"]) == (4, None)
    np.testing.assert_allclose(bright["chunks"]["brightness"], np.array([122.5, 142.5, 162.5]) / 255, atol=0.01)
    assert bright["chunks"]["border_jump"][0] is None
    assert bright["drift"]["brightness"] == pytest.approx(40 / 255, abs=0.01)
    assert bright["frechet"] > 5 * dark["frechet_of_halves"]
    with pytest.raises(ValueError, match="there is no mp4 file in"):
        videos.main(videos._parse(["videos", str(tmp_path / "none")]))
    short, long = (videos.measure(brightening(0, frames), 4) for frames in (8, 12))
    with pytest.raises(ValueError, match="the same number of chunks, got numbers"):
        videos.describe([short, long])
