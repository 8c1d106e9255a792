"""Statistics of frames, for frames whose statistics are known."""

import numpy as np
import pytest

from helios_jax.evaluation.statistics import (
    LUMA,
    STATISTICS,
    chunk_statistics,
    drift,
    high_band,
    mean_statistics,
    sharpness,
)


def flat(colour, frames=3, size=16):
    return np.broadcast_to(np.uint8(colour), (frames, size, size, 3))


def grating(cycles, size=64, amplitude=1.0, axis=1):
    """One frame, a cosine with so many cycles over its rows (axis 0) or columns."""
    wave = amplitude * np.cos(2 * np.pi * cycles * np.arange(size) / size)
    plane = np.broadcast_to(wave if axis == 1 else wave[:, None], (size, size))
    return plane[None].astype(np.float32)


def test_constant_frames():
    found = chunk_statistics(flat((51, 102, 204)), 3)
    assert found.keys() == set(STATISTICS)
    expected = {"brightness": 0.2126 * 0.2 + 0.7152 * 0.4 + 0.0722 * 0.8, "saturation": 0.6, "yellow": 0.3 - 0.8}
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx([value], abs=1e-6)
    for name in ("contrast", "sharpness", "high_band", "motion"):
        assert found[name].tolist() == pytest.approx([0.0], abs=1e-6), name
    assert np.isnan(found["border_jump"]).tolist() == [True]


def test_stripes_have_the_contrast_and_sharpness_of_the_closed_form():
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    frames[:, :, ::2] = 255  # columns of white and black: Y is 1 and 0
    found = chunk_statistics(frames, 2)
    assert found["brightness"].tolist() == pytest.approx([0.5])
    assert found["contrast"].tolist() == pytest.approx([0.5])
    assert found["sharpness"].tolist() == pytest.approx([2.0])  # |0 + 0 - 2| on white, |1 + 1| on black
    # The Laplacian of a cos(k x) is 2 (cos k - 1) a cos(k x), and the rms of a cosine is its amplitude / sqrt 2.
    wave = grating(8, amplitude=0.3)
    inner = np.sqrt(np.square(wave[:, :, 1:-1]).mean())
    assert sharpness(wave) == pytest.approx(2 * (1 - np.cos(2 * np.pi / 8)) * inner, rel=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_power_of_gratings_is_in_their_band(axis):
    # A quarter of a cycle per pixel is 16 cycles over 64 pixels.
    assert high_band(grating(5, axis=axis)) == pytest.approx(0, abs=1e-5)
    assert high_band(grating(24, axis=axis)) == pytest.approx(1, abs=1e-5)
    both = 0.5 + grating(5, amplitude=0.3, axis=axis) + grating(24, amplitude=0.1, axis=axis)
    assert high_band(both) == pytest.approx(0.1**2 / (0.3**2 + 0.1**2), rel=1e-3)
    two = np.concatenate([both, np.zeros_like(both)])  # a frame without contrast has no high frequencies
    assert high_band(two) == pytest.approx(0.05, rel=1e-3)


def test_a_diagonal_grating_counts_by_the_length_of_its_frequency():
    """14 cycles along both axes: each is below a quarter, sqrt(2) times that is above."""
    angle = 2 * np.pi * 14 * (np.arange(64)[:, None] + np.arange(64)) / 64
    assert high_band(np.cos(angle)[None].astype(np.float32)) == pytest.approx(1, abs=1e-5)


def test_white_noise_has_the_power_of_its_band():
    """Its power is the same everywhere, and low frequencies are a disc of area pi / 16 in the unit square."""
    noise = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    assert high_band(noise) == pytest.approx(1 - np.pi / 16, abs=0.01)


def test_borders_of_a_steady_motion_do_not_jump_and_cuts_do():
    ramp = np.stack([flat((value, value, value), 1)[0] for value in range(0, 90, 10)])
    steady = chunk_statistics(ramp, 3)
    assert steady["motion"].tolist() == pytest.approx([10 / 255] * 3, rel=1e-4)
    assert steady["border_jump"][1:].tolist() == pytest.approx([0, 0], abs=1e-6)
    cut = ramp.copy()
    cut[6:] += 100
    assert chunk_statistics(cut, 3)["border_jump"][1:].tolist() == pytest.approx([0, 100 / 255], abs=1e-6)
    single = chunk_statistics(cut[:7], 3)  # the last chunk has one frame, and so no motion
    assert np.isnan(single["motion"][2])
    assert single["border_jump"][2] == pytest.approx(100 / 255, abs=1e-6)


def test_drift_over_chunks():
    frames = np.concatenate([flat((value, value, value)) for value in (50, 80, 110, 140)])
    found = chunk_statistics(frames, 3)
    np.testing.assert_allclose(found["brightness"], np.array([50, 80, 110, 140]) / 255, rtol=1e-5)
    assert drift(found["brightness"]) == pytest.approx(90 / 255, rel=1e-5)
    assert drift(found["border_jump"]) == pytest.approx(0, abs=1e-6)  # of chunks 1 and 3: both 30
    assert np.isnan(drift(np.array([np.nan, 1.0])))
    means = mean_statistics([found, chunk_statistics(flat((0, 0, 0), 12), 3)])
    np.testing.assert_allclose(means["brightness"], np.array([25, 40, 55, 70]) / 255, rtol=1e-5)


def test_luma_is_of_white_one():
    assert LUMA.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="a video without frames has no statistics"):
        chunk_statistics(np.zeros((0, 8, 8, 3), np.uint8), 3)
