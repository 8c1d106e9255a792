"""The Fréchet distance of two sets of videos, by features of pixels that need no network.

With mean m and covariance S of the features of each set (the Wasserstein-2 distance of Gaussians; arXiv 1706.08500),

    d^2 = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^(1/2) S_2 S_1^(1/2))^(1/2))                               (1)

The ``features`` of a video are 41 numbers, with Y, Cb = B - Y and Cr = R - Y for colours in [0, 1]:

    16  means of Y over time, in 4 x 4 blocks
     8  means of Cb and of Cr over time, in 2 x 2 blocks
     4  contrast: mean over frames of the standard deviation of Y, in 2 x 2 blocks
     5  detail: rms of Y's spectrum in the octaves of up to 1/32, 1/16, 1/8, 1/4 and all cycles per pixel
     8  motion: mean |Y(t + n) - Y(t)| for n = 1 and 4, in 2 x 2 blocks

They are divided by their standard deviations in the reference set, so d has no unit. Small sets seem further apart than
they are: two sets of n videos from the same Gaussian of D independent features have, to first order in 1 / n,

    d^2 = 2 D / n + D (D + 1) / (2 n)                                                                     (2)

which for D = 41 and n = 256 is d = 1.9. Compare only sets of one size, and give the distance between two sets of data.
"""

import itertools

import numpy as np

from helios_jax.evaluation.statistics import luma
from helios_jax.typing import Float, UInt8

NUM_FEATURES = 41

_OCTAVES = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
_LAGS = (1, 4)
_SMALLEST_STD = 1e-3
"""A feature that hardly varies in the reference set is not divided by less: a quarter of a level of 255."""


def features(frames: UInt8[np.ndarray, "F H W 3"]) -> Float[np.ndarray, " 41"]:
    """The features of a video of at least 5 frames of at least 64 x 64 pixels; see above.

    Raises:
        ValueError: The video is shorter or smaller.
    """
    if len(frames) <= max(_LAGS) or min(frames.shape[1:3]) < 64:
        raise ValueError(f"a video of {list(frames.shape)}; the features need at least 5 frames of 64 x 64 pixels")
    y = luma(frames).astype(np.float64)
    mean, colour = y.mean(0), frames.mean(0) / 255
    parts = [block_means(mean[None], 4)]
    parts += [block_means((colour[..., channel] - mean)[None], 2) for channel in (2, 0)]
    squares = block_means(np.square(y), 2) - np.square(block_means(y, 2))
    parts.append(np.sqrt(np.maximum(squares, 0)).mean(0)[None])
    parts.append(_octaves(y)[None])
    parts += [block_means(np.abs(y[lag:] - y[:-lag]).mean(0)[None], 2) for lag in _LAGS]
    return np.concatenate([part.ravel() for part in parts])


def video_distance(videos: Float[np.ndarray, "videos 41"], reference: Float[np.ndarray, "clips 41"]) -> float:
    """d of equation (1) between ``features`` of videos and of a reference set.

    Raises:
        ValueError: A set has fewer than two videos, and so no covariance.
    """
    if min(len(videos), len(reference)) < 2:
        raise ValueError(f"{len(videos)} videos and {len(reference)} of reference; both need at least 2")
    scale = np.maximum(reference.std(0), _SMALLEST_STD)
    (mean1, covariance1), (mean2, covariance2) = (_gaussian(array / scale) for array in (videos, reference))
    return frechet_distance(mean1, covariance1, mean2, covariance2)


def frechet_distance(
    mean1: Float[np.ndarray, " D"],
    covariance1: Float[np.ndarray, "D D"],
    mean2: Float[np.ndarray, " D"],
    covariance2: Float[np.ndarray, "D D"],
) -> float:
    """d of equation (1); covariances may be singular."""
    root = matrix_root(covariance1)
    # The eigenvalues of a symmetric product, rather than those of S_1 S_2: they are real and not negative.
    eigenvalues = np.linalg.eigvalsh(root @ covariance2 @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    squared = np.square(mean1 - mean2).sum() + np.trace(covariance1) + np.trace(covariance2) - 2 * cross
    return float(np.sqrt(max(squared, 0.0)))


def matrix_root(matrix: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    """The symmetric square root of a symmetric matrix without negative eigenvalues, up to rounding."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T


def _gaussian(rows: Float[np.ndarray, "videos D"]) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"]]:
    return rows.mean(0), np.cov(rows, rowvar=False)


def block_means(planes: Float[np.ndarray, "F H W"], count: int) -> Float[np.ndarray, "F blocks"]:
    """Means in ``count`` x ``count`` blocks; rows and columns that do not divide go to the last ones."""
    rows, columns = (np.arange(count) * (size // count) for size in planes.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(planes, rows, axis=1), columns, axis=2)
    heights, widths = (
        np.diff(np.append(starts, size)) for starts, size in zip((rows, columns), planes.shape[1:], strict=True)
    )
    return (sums / np.outer(heights, widths)).reshape(len(planes), -1)


def _octaves(y: Float[np.ndarray, "F H W"]) -> Float[np.ndarray, " bands"]:
    """Rms amplitude of Y in each octave of spatial frequencies, without the mean."""
    height, width = y.shape[1:]
    power = np.square(np.abs(np.fft.fft2(y - y.mean((1, 2), keepdims=True)))).mean(0) / (height * width) ** 2
    lengths = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    octaves = itertools.pairwise(_OCTAVES)
    return np.sqrt([power[(lengths > low) & (lengths <= high)].sum() for low, high in octaves])
