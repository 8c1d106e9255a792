"""The suites on videos in files: scores of rendered scenes are known, and so are those of damaged ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from helios_jax.data.moving_shapes import MovingShapes
from helios_jax.data.moving_shapes.styles import STYLES
from helios_jax.evaluation import flags
from helios_jax.evaluation.caption_score import CaptionScore, chunk_score, measured_of
from helios_jax.evaluation.external import ExternalResults, read_results
from helios_jax.evaluation.metrics import VideoInfo
from helios_jax.evaluation.moving_shapes import measure_shapes
from helios_jax.evaluation.prompts import BenchmarkPrompt, read_prompts
from helios_jax.evaluation.records import open_records
from helios_jax.evaluation.runner import Options, measure_part
from helios_jax.evaluation.sources import find_videos
from helios_jax.evaluation.suites.base import Subject
from helios_jax.evaluation.suites.drift import DriftSuite
from helios_jax.evaluation.suites.heliosbench import HeliosBenchSuite, frames_per_second, published_length
from helios_jax.evaluation.suites.moving_shapes import MovingShapesSuite
from helios_jax.evaluation.worlds import ShapesWorld, World, WorldSettings
from helios_jax.media.saving import save_video

SCENES = WorldSettings(seed=3, frames=66, height=64, width=64)


def score_of(frames, caption, chunk_frames=33, metric=None, name="0"):
    info = {"num_frames": len(frames), "height": 64, "width": 64, "chunk_frames": chunk_frames}
    measurement = (metric or CaptionScore()).start(VideoInfo(name=name, prompt=caption, **info))
    for start in range(0, len(frames), chunk_frames):
        measurement.update(frames[start : start + chunk_frames])
    return measurement.result()


def test_a_scene_shows_its_caption_and_damage_is_seen_where_it_is():
    world = ShapesWorld(WorldSettings(seed=3, frames=132, height=64, width=64, num_shapes=1))
    frames, caption = world.frames(1).copy(), world.caption(1)
    clean = score_of(frames, caption)
    assert clean.values == {"recovered": 1, "first_chunk": 1, "last_chunk": 1}
    frames[99:] = 128
    damaged = score_of(frames, caption)
    # The damage follows the frames that are judged as a whole, and its chunk shows no shape.
    assert damaged.values["recovered"] == damaged.values["first_chunk"] == 1
    assert damaged.curves["caption score of chunks"].values[:3] == (1, 1, 1)
    assert damaged.values["last_chunk"] <= 2 / 6
    assert damaged.details["row"] == clean.details["row"]
    frames[:] = 128
    assert score_of(frames, caption).values["recovered"] == 0


def test_chunks_are_not_judged_by_their_motion():
    """Played backwards, the first direction is wrong and everything else stays."""
    world = ShapesWorld(WorldSettings(seed=3, frames=99, height=64, width=64, num_shapes=1))
    frames, caption = world.frames(1)[::-1], world.caption(1)
    assert chunk_score(frames[:33], caption) == 1
    assert score_of(frames, caption).values["recovered"] == 0


def test_details_hold_the_measured_video():
    frames = ShapesWorld(SCENES).frames(0)
    details = json.loads(json.dumps(score_of(frames, ShapesWorld(SCENES).caption(0)).details))
    found, expected = measured_of(details["measured"]), measure_shapes(frames)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.displacement, expected.displacement, rtol=1e-5)
    for name, values in expected.statistics.items():
        np.testing.assert_allclose(found.statistics[name], values, rtol=1e-5)


def test_styles_have_the_names_of_the_flag():
    assert flags.STYLES == STYLES


@pytest.mark.parametrize("style", STYLES)
def test_scenes_of_every_style_are_recovered(style):
    world = ShapesWorld(WorldSettings(seed=3, frames=99, height=64, width=64, num_shapes=1, style=style))
    assert isinstance(world, World)
    scenes = MovingShapes(seed=3, size=2, frames=99, height=64, width=64, num_shapes=1, style=style)
    assert world.caption(1) == scenes[1]["caption"]
    np.testing.assert_array_equal(world.frames(1), scenes[1]["frames"])
    (metric,) = world.metrics
    assert score_of(world.frames(1), world.caption(1), metric=metric).values["recovered"] == 1


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Scenes 0 and 1, and a file named 2 that shows scene 3."""
    folder, world = tmp_path_factory.mktemp("videos"), ShapesWorld(SCENES)
    for name, scene in (("0_66_ori66", 0), ("1_66_ori66", 1), ("2_66_ori66", 3)):
        save_video(folder / f"{name}.mp4", world.frames(scene), 24, crf=4)
    return folder


def measured(suite, out):
    with open_records(out, {}) as records:
        found = {part.name: measure_part(part, records, Options(processes=1)) for part in suite.parts}
    return suite.scores(found)


def test_files_are_scored_against_the_scenes_they_are_named_after(videos, tmp_path):
    subject = Subject(sampler=None, files=tuple(find_videos(videos, ())))
    suite = MovingShapesSuite(subject=subject, world=ShapesWorld(SCENES), settings=SCENES, videos=3)
    scores = measured(suite, tmp_path)
    assert scores["files"]["recovered"] == "66.7 % (2 of 3)"
    assert scores["files"]["recovered_rate"] == 2 / 3
    assert [row["recovered"] for row in scores["videos"]] == [1, 1, 0]
    assert scores["files"]["first_chunk"] < 1
    assert dict(suite.tables(scores))["Videos in files"][:2] == [
        ("recovered", "66.7 % (2 of 3)"),
        ("recovered_rate", "0.6667"),
    ]


def test_drift_of_files(videos, tmp_path):
    subject = Subject(sampler=None, files=tuple(find_videos(videos, ())))
    suite = DriftSuite(subject=subject, prompts=[], num_frames=66, height=64, width=64)
    scores = measured(suite, tmp_path)["files"]
    assert scores["videos"] == 3
    assert abs(scores["drift_brightness"]) < 0.01
    assert 0.5 < scores["border_ratio"] < 1.5
    assert 0 < scores["anchor_similarity"] < 1
    assert "recovered" not in scores


def test_the_benchmark_needs_what_others_measure_for_a_total(tmp_path):
    pytest.importorskip("cv2", reason="the extra evaluate is not installed")
    files = (tmp_path / "0_9_ori9.mp4",)
    save_video(files[0], ShapesWorld(SCENES).frames(0)[:9], 24)
    suite = HeliosBenchSuite(subject=Subject(sampler=None, files=files), prompts=[], height=64, width=64, rules="short")
    scores = measured(suite, tmp_path / "a")
    assert scores["missing"] == ["aesthetic", "motion_smoothness", "semantic", "naturalness"]
    assert scores["total"] is None
    assert "throughput" not in scores
    elsewhere = {"aesthetic": 0.61, "motion_smoothness": 0.985, "semantic": 0.275, "naturalness": 0.5}
    results = ExternalResults(values={name: {"0_9_ori9": value} for name, value in elsewhere.items()})
    suite = HeliosBenchSuite(subject=suite.subject, prompts=[], height=64, width=64, rules="short", results=results)
    scores = measured(suite, tmp_path / "a")
    amplitude = scores["ratings"].pop("motion_amplitude")
    assert scores["ratings"] == {"aesthetic": 8, "motion_smoothness": 9, "semantic": 7, "naturalness": 7}
    assert scores["total"] == pytest.approx(0.1 * (8 + 9 + amplitude) + 0.35 * (7 + 7))
    with pytest.raises(ValueError, match="aesthetic has no value for 1 of 1 videos, for example b"):
        results.check(["b"])


def test_results_of_others_are_read(tmp_path):
    file = tmp_path / "results.json"
    file.write_text('{"aesthetic": {"1_120_ori129.mp4": 0.5, "2_240_ori261": 1}}')
    assert read_results(file).values == {"aesthetic": {"1_120_ori129": 0.5, "2_240_ori261": 1.0}}
    for text, message in (("[1]", "needs the form"), ('{"a": {"b": "c"}}', "a of b"), ("{", "is not JSON")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_results(file)


def test_lengths_of_videos_are_the_published_ones():
    """The authors' example video for 120 frames has 129."""
    assert [published_length(target, 33) for target in (120, 240, 720, 1440)] == [129, 261, 725, 1449]


def test_speed_leaves_out_what_compiles():
    def record(frames, seconds, cold):
        return {"num_frames": frames, "chunk_frames": 33, "seconds": seconds, "cold": cold}

    records = [record(129, 60.0, True), record(129, 6.0, False), record(261, 10.0, False), record(33, 40.0, True)]
    assert frames_per_second(records) == (132 + 264) / 16
    assert frames_per_second(records[:1]) == 132 / 60
    assert np.isnan(frames_per_second([{"num_frames": 129, "chunk_frames": 33}]))


def test_prompts_have_durations(tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text('id,prompt,duration\n1,"A fox, red.",120\n2,A bird.,\n')
    assert read_prompts(file) == [
        BenchmarkPrompt(id="1", text="A fox, red.", duration=120),
        BenchmarkPrompt(id="2", text="A bird."),
    ]
    file.write_text("id,prompt,duration\n1,A fox.,long\n")
    with pytest.raises(ValueError, match="line 2: duration='long' is not a number of frames"):
        read_prompts(file)
    text = tmp_path / "prompts.txt"
    text.write_text("A fox.\n\nA bird.\n")
    assert [(prompt.id, prompt.text) for prompt in read_prompts(text)] == [("1", "A fox."), ("3", "A bird.")]


def test_videos_are_found_in_the_order_of_their_numbers(tmp_path):
    for name in ("10_a.mp4", "9_b.mp4", "z.webm", "notes.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in find_videos(tmp_path, ())] == ["9_b.mp4", "10_a.mp4", "z.webm"]
    (tmp_path / "z.mp4").touch()
    with pytest.raises(ValueError, match=r"would share the record z\.json"):
        find_videos(tmp_path, ())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no video"):
        find_videos(tmp_path / "empty", ())


def test_a_scene_agrees_with_itself_and_a_frozen_one_does_not():
    """From the second chunk on, the frozen video shows the last frame of the first chunk."""
    settings = WorldSettings(seed=3, frames=99, height=64, width=64, num_shapes=1, style="textured")
    world = ShapesWorld(settings)
    (metric,) = world.scene_metrics
    truth = world.frames(1)
    found = score_of(truth, world.caption(1), metric=metric, name="1")
    assert found.values["last_path_error"] < 0.001
    assert found.values["last_speed_ratio"] == pytest.approx(1, abs=0.005)
    assert found.values["last_high_band_ratio"] == 1
    assert found.values["last_background_distance"] == found.values["last_shape_distance"] == 0
    assert found.curves["caption score against the scene"].values == (1, 1, 1)
    frozen = truth.copy()
    frozen[33:] = truth[32]
    damaged = score_of(frozen, world.caption(1), metric=metric, name="1")
    assert damaged.curves["path error"].values[0] == found.curves["path error"].values[0]
    assert damaged.values["last_path_error"] > 0.05
    assert damaged.values["last_speed_ratio"] < 0.05
    assert ShapesWorld(SCENES).scene_metrics == ()
