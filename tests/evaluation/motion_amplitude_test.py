"""Motion amplitude against values that were recorded by the published computation, and clips of the authors."""

import os
from pathlib import Path

import numpy as np
import pytest
from record_motion_amplitude import motion_clip

from helios_jax.evaluation.end_drift import EndDrift
from helios_jax.evaluation.metrics import VideoInfo
from helios_jax.evaluation.motion_amplitude import MotionAmplitude, benchmark_size
from helios_jax.evaluation.sources import file_batch

pytest.importorskip("cv2", reason="the extra evaluate is not installed")

CLIPS = os.environ.get("HELIOS_BENCH_CLIPS")


def measured(file: Path, metric) -> dict[str, float]:
    batch = file_batch(file, 33)
    measurement = metric.start(batch.videos[0])
    for chunk in batch.chunks():
        measurement.update(chunk[0])
    return dict(measurement.result().values)


@pytest.mark.parametrize(("motion", "recorded"), [((3.0, 1.0), 1.3647634983062744), ((-2.0, 0.5), 0.5134277939796448)])
def test_amplitude_is_the_recorded_one(tmp_path, motion, recorded):
    """The true mean of both components is 640 / 832 times that of the motion: 1.54 and 0.58."""
    motion_clip(tmp_path / "clip.mp4", *motion)
    assert measured(tmp_path / "clip.mp4", MotionAmplitude())["motion_amplitude"] == pytest.approx(recorded, rel=0.02)


@pytest.mark.skipif(CLIPS is None, reason="HELIOS_BENCH_CLIPS names no folder with the benchmark's two toy clips")
@pytest.mark.parametrize(
    ("name", "published"), [("2_240_ori81", 0.19912056624889374), ("239_120_ori129", 0.05887579917907715)]
)
def test_amplitude_of_the_toy_clips_is_the_published_one(name, published):
    found = measured(Path(CLIPS) / f"{name}.mp4", MotionAmplitude())
    assert found["motion_amplitude"] == pytest.approx(published, rel=0.02)


def test_motions_to_both_sides_cancel_and_their_drift_does_not():
    """A pattern moves to the right by 2 pixels a frame, and then back."""
    y, x = np.meshgrid(np.arange(160), np.arange(160), indexing="ij")
    places = np.array([*range(0, 40, 2), *range(40, 0, -2)])[:, None, None]
    waves = sum(np.sin(2 * np.pi * ((x - places) + slope * y) / 24) for slope in (-1.0, 0.3, 2.0))
    frames = np.round(128 + 40 * waves)[..., None].repeat(3, axis=-1).astype(np.uint8)
    video = VideoInfo(name="a", num_frames=40, height=160, width=160, chunk_frames=33)
    whole, ends = MotionAmplitude(resize=False), EndDrift(metric=MotionAmplitude(resize=False), at_least=2)
    found = {}
    for metric in (whole, ends):
        measurement = metric.start(video)
        measurement.update(frames[:33])
        measurement.update(frames[33:])
        found |= measurement.result().values
    assert found["motion_amplitude"] < 0.05
    # Both ends move by 2 pixels: 1 on average over both components, and equal but for their sign, which is lost.
    assert found["drifting_motion_amplitude"] < 0.1
    measurement = whole.start(video)
    measurement.update(frames[:20])
    assert measurement.result().values["motion_amplitude"] == pytest.approx(1, rel=0.01)


def test_sizes_keep_the_aspect_and_are_even():
    assert benchmark_size(480, 832) == (368, 640)
    assert benchmark_size(384, 640) == (384, 640)
    assert benchmark_size(64, 64) == (640, 640)
    assert benchmark_size(832, 480) == (384, 220)
