"""The Fréchet distance against closed forms, and features of frames that are known."""

import numpy as np
import pytest

from helios_jax.evaluation.frechet import NUM_FEATURES, features, frechet_distance, matrix_root, video_distance


def rotation(seed, size=4):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def test_gaussians_with_common_axes_have_the_distance_of_their_standard_deviations():
    """For S_i = U diag(s_i^2) U^T: d^2 = |m_1 - m_2|^2 + |s_1 - s_2|^2."""
    axes = rotation(0)
    first, second = np.array([1.0, 2.0, 0.5, 0.0]), np.array([2.0, 0.5, 0.5, 3.0])
    mean1, mean2 = np.array([1.0, 0, 0, 0]), np.array([0, 0, 2.0, 0])
    covariances = [(axes * np.square(deviations)) @ axes.T for deviations in (first, second)]
    expected = np.sqrt(np.square(mean1 - mean2).sum() + np.square(first - second).sum())
    assert frechet_distance(mean1, covariances[0], mean2, covariances[1]) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(mean1, covariances[0], mean1, covariances[0]) == pytest.approx(0, abs=1e-5)


def test_general_gaussians_of_two_dimensions():
    """In two dimensions tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), for M with the eigenvalues of S_1 S_2."""
    covariance1, covariance2 = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[0.5, -0.2], [-0.2, 1.5]])
    product = covariance1 @ covariance2
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.sqrt(9 + np.trace(covariance1) + np.trace(covariance2) - 2 * cross)
    zero = np.zeros(2)
    assert frechet_distance(zero, covariance1, np.array([3.0, 0.0]), covariance2) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(matrix_root(covariance1) @ matrix_root(covariance1), covariance1, atol=1e-12)


def test_distances_have_the_unit_of_the_reference():
    generator = np.random.default_rng(1)
    reference = generator.normal(size=(4000, NUM_FEATURES)) * 0.2 + 5
    moved = reference + 0.2  # one standard deviation in every feature
    assert video_distance(moved, reference) == pytest.approx(np.sqrt(NUM_FEATURES), rel=0.01)
    halves = video_distance(reference[::2], reference[1::2])
    bias = 2 * NUM_FEATURES / 2000 + NUM_FEATURES * (NUM_FEATURES + 1) / (2 * 2000)  # (2), to first order in 1 / n
    assert halves == pytest.approx(np.sqrt(bias), rel=0.1)
    with pytest.raises(ValueError, match="1 videos and 4000 of reference; both need at least 2"):
        video_distance(moved[:1], reference)


def test_features_of_known_frames():
    frames = np.zeros((6, 64, 64, 3), np.uint8)
    frames[:, :32, :, 2] = 255  # the upper half is blue
    found = features(frames)
    assert found.shape == (NUM_FEATURES,)
    blue = 0.0722
    np.testing.assert_allclose(found[:16], [blue] * 8 + [0] * 8, atol=1e-6)
    np.testing.assert_allclose(found[16:20], [1 - blue] * 2 + [0] * 2, atol=1e-6)  # Cb
    np.testing.assert_allclose(found[20:24], [-blue] * 2 + [0] * 2, atol=1e-6)  # Cr
    np.testing.assert_allclose(found[24:28], 0, atol=1e-4)  # no contrast within blocks
    assert np.square(found[28:33]).sum() == pytest.approx((blue / 2) ** 2, rel=1e-4)  # Parseval: the variance of Y
    np.testing.assert_array_equal(found[33:], 0)  # no motion
    moving = frames.copy()
    moving[::2] = 0  # the blue half is there in every second frame: at a lag of 4 nothing changes
    np.testing.assert_allclose(features(moving)[33:], [blue, blue, 0, 0, 0, 0, 0, 0], atol=1e-6)


def test_detail_is_in_its_octave():
    columns = 127 + 100 * np.cos(2 * np.pi * 12 * np.arange(64) / 64)  # 12 / 64 is between 1/8 and 1/4
    frames = np.broadcast_to(np.round(columns)[None, None, :, None], (5, 64, 64, 3)).astype(np.uint8)
    expected = [0, 0, 0, 100 / 255 / np.sqrt(2), 0]
    np.testing.assert_allclose(features(frames)[28:33], expected, atol=2e-3)
    with pytest.raises(ValueError, match="need at least 5 frames of 64 x 64 pixels"):
        features(frames[:4])
