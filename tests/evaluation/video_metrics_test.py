"""Drift, borders, similarity and ends of videos with known truth; loading of metrics."""

import dataclasses

import numpy as np
import pytest

from helios_jax.evaluation.appearance import Appearance, border_ratio
from helios_jax.evaluation.end_drift import EndDrift
from helios_jax.evaluation.metrics import Curve, Result, VideoInfo, load_metric
from helios_jax.evaluation.similarity import Similarity, thumbnails
from helios_jax.evaluation.statistics import STATISTICS, chunk_statistics


def info(frames, chunk_frames=8, **more) -> VideoInfo:
    count, height, width, _ = frames.shape
    fields = {"name": "a", "num_frames": count, "height": height, "width": width, "chunk_frames": chunk_frames}
    return VideoInfo(**fields, **more)


def measured(metric, frames, chunk_frames=8) -> Result:
    measurement = metric.start(info(frames, chunk_frames))
    for start in range(0, len(frames), chunk_frames):
        measurement.update(frames[start : start + chunk_frames])
    return measurement.result()


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean level of a video, and how many frames it had."""

    name: str = "mean"

    def start(self, video):
        return _Mean()


class _Mean:
    def __init__(self):
        self.frames = []

    def update(self, frames):
        self.frames += list(frames)

    def result(self):
        return Result(values={"mean": float(np.mean(self.frames)), "count": len(self.frames)})


def grey(levels) -> np.ndarray:
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 16, 16, 3))


@pytest.mark.parametrize(
    ("count", "ends", "drift"), [(100, 15, 85), (7, 1, 6), (1, 1, 0), (81, 12, 69)], ids=lambda value: str(value)
)
def test_ends_are_15_percent_of_the_frames(count, ends, drift):
    """Frame t has the level t, so that the means of both ends are F - n apart."""
    metric = EndDrift(metric=Mean())
    measurement = metric.start(info(grey(range(count)), 33))
    for start in range(0, count, 33):
        measurement.update(grey(range(start, min(start + 33, count))))
    assert measurement.result().values == {"drifting_mean": drift, "drifting_count": 0}
    assert metric.name == "drifting_mean"
    assert len(measurement._first.frames) == len(measurement._last.frames) == ends


def test_ends_can_have_a_minimum_and_overlap():
    frames = grey(range(3))
    assert measured(EndDrift(metric=Mean(), at_least=2), frames).values["drifting_mean"] == 1
    assert measured(EndDrift(metric=Mean(), at_least=9), frames).values["drifting_mean"] == 0


def test_statistics_are_those_of_the_whole_video_at_once():
    frames = np.random.default_rng(0).integers(0, 256, (24, 16, 24, 3)).astype(np.uint8)
    found, expected = measured(Appearance(), frames), chunk_statistics(frames, 8)
    for name in STATISTICS:
        np.testing.assert_array_equal(found.curves[f"{name} of chunks"].values, expected[name])
    for name in ("brightness", "contrast", "sharpness", "saturation"):
        of_frames = np.array(found.curves[name].values).reshape(3, 8).mean(1)
        np.testing.assert_allclose(of_frames, expected[name], rtol=1e-5)
        assert found.values[f"drift_{name}"] == expected[name][2] - expected[name][0]


def test_drift_of_a_video_that_gets_brighter():
    """Levels 0, 2, 4, ...: chunks of 8 frames are 16 levels apart; a last chunk of 3 frames does not count."""
    found = measured(Appearance(), grey(range(0, 2 * 35, 2)))
    assert found.values["drift_brightness"] == pytest.approx(3 * 16 / 255, rel=1e-5)
    assert found.values["border_ratio"] == pytest.approx(1, rel=1e-5)
    assert found.values["border_jump"] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(found.curves["change"].values[1:], 2 / 255, rtol=1e-4)


def test_jumps_at_the_borders_of_chunks():
    """Steps of 1 level inside chunks and of 5 levels between them."""
    levels = np.cumsum([5 if t % 8 == 0 and t else 1 for t in range(32)])
    found = measured(Appearance(), grey(levels))
    assert found.values["border_ratio"] == pytest.approx(5, rel=1e-4)
    assert found.values["border_jump"] == pytest.approx(4 / 255, rel=1e-4)
    assert np.isnan(border_ratio(np.array([np.nan, 0, 0, 0]), 2))
    assert np.isnan(border_ratio(np.array([np.nan, 1.0]), 33))


def turning(count, period) -> np.ndarray:
    """Two patterns at right angles to each other, the mix of which turns: s(t, t + d) = cos(2 pi d / period)."""
    y, x = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    first, second = np.cos(2 * np.pi * x / 32), np.cos(2 * np.pi * y / 32)
    angles = 2 * np.pi * np.arange(count)[:, None, None] / period
    return (
        np.round(128 + 90 * (np.cos(angles) * first + np.sin(angles) * second) / np.sqrt(2))[..., None]
        .repeat(3, axis=-1)
        .astype(np.uint8)
    )


def test_similarity_follows_the_angle_between_frames():
    found = measured(Similarity(), turning(80, 80), chunk_frames=33)
    curve = found.curves["similarity"]
    assert curve.at == (1, 2, 4, 8, 16, 32, 64)
    np.testing.assert_allclose(curve.values, np.cos(2 * np.pi * np.array(curve.at) / 80), atol=0.01)
    anchor = np.cos(2 * np.pi * np.arange(80) / 80)
    np.testing.assert_allclose(found.curves["similarity to frame 0"].values, anchor, atol=0.01)
    # The last chunk has 14 frames, fewer than half of 33: the one before it is compared.
    assert found.values["anchor_similarity"] == pytest.approx(anchor[33:66].mean(), abs=0.01)


def test_similarity_of_far_frames_keeps_512_thumbnails():
    frames = turning(1100, 1024)
    measurement = Similarity().start(info(frames, 100))
    for start in range(0, 1100, 100):
        measurement.update(frames[start : start + 100])
    curve = measurement.result().curves["similarity"]
    assert curve.at[-1] == 512
    assert curve.values[-1] == pytest.approx(-1, abs=0.01)
    assert len(measurement._kept) == 512


def test_frames_without_structure_have_no_similarity():
    assert np.isnan(thumbnails(grey([10, 200]))).all()
    found = measured(Similarity(), grey([10, 10, 200]))
    assert found.curves["similarity"].at == ()
    assert np.isnan(found.values["anchor_similarity"])
    with pytest.raises(ValueError, match="8x8; similarity needs 16x16"):
        Similarity().start(info(np.zeros((2, 8, 8, 3), np.uint8)))


def test_metrics_are_loaded_by_name(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "class Metric:\n    name = 'mine'\n    def start(self, video): ...\n"
        "ready = Metric()\nnumber = 3\ndef broken(): raise KeyError('weights')\n"
    )
    assert load_metric(f"{file}:Metric").name == load_metric(f"{file}:ready").name == "mine"
    monkeypatch.syspath_prepend(tmp_path)
    assert load_metric("mine:ready").name == "mine"
    for text, message in (
        ("mine", "write module:name or file.py:name"),
        ("mine:number", "is 3, not a metric"),
        ("mine:broken", "KeyError: 'weights'"),
        ("mine:absent", "AttributeError"),
        ("nowhere.at.all:x", "ModuleNotFoundError"),
    ):
        with pytest.raises(ValueError, match=message):
            load_metric(text)
    with pytest.raises(FileNotFoundError, match=r"there is no file absent\.py"):
        load_metric("absent.py:x")


def test_values_of_curves_have_positions():
    with pytest.raises(ValueError, match="a curve of 1 values at 2 positions"):
        Curve(axis="frame", at=(0, 1), values=(0.5,))
    assert info(grey(range(20)), 8).compared_chunks == 3
    assert info(grey(range(19)), 8).compared_chunks == 2
    assert info(grey(range(2)), 8).compared_chunks == 1
