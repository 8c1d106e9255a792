"""Bootstrap intervals of means over scenes, for rows whose videos show the same scenes.

With n scenes, a resample draws n of them with replacement, and all values of a scene come along: those of both rows and
of all chunks. The interval of a mean, or of a difference of means, lies between the quantiles of its resampled values

    (1 - c) / 2  and  (1 + c) / 2,    c the level of confidence                                          (1)

(percentile bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Values that are not
known (NaN) are left out of means; a resample without any known value does not count.
"""

import dataclasses

import numpy as np

from helios_jax.typing import Float

DRAWS = 10_000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over scenes and its interval (1).

    Attributes:
        mean: The mean; NaN if no scene has a value.
        low: Lower end.
        high: Upper end.
        scenes: Scenes with a value.
    """

    mean: float
    low: float
    high: float
    scenes: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Float[np.ndarray, " scenes"], *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The mean over scenes and its interval. For a paired difference, give the difference of each scene."""
    mean, low, high = mean_intervals(values[:, None], draws=draws, seed=seed)
    known = int(np.isfinite(values).sum())
    return Interval(mean=float(mean[0]), low=float(low[0]), high=float(high[0]), scenes=known)


def mean_intervals(
    values: Float[np.ndarray, "scenes columns"], *, draws: int = DRAWS, seed: int = 0
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
    """Means over scenes and the ends of their intervals, of every column; resamples are those of whole rows.

    Args:
        values: A row for each scene; NaN where there is no value.
        draws: Resamples.
        seed: Seed of the resamples; equal seeds and numbers of scenes give equal resamples.

    Raises:
        ValueError: There is no scene.
    """
    scenes = len(values)
    if not scenes:
        raise ValueError("no scenes: a mean needs at least one")
    # How often each scene is drawn in a resample, which is all that a mean depends on.
    times = np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1 / scenes), size=draws)
    known = np.isfinite(values)
    sums, counts = times @ np.where(known, values, 0.0), times @ known
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    tail = 100 * (1 - LEVEL) / 2
    ends = np.full((2, values.shape[1]), np.nan)
    some = known.any(0)
    if some.any():
        ends[:, some] = np.nanpercentile(means[:, some], [tail, 100 - tail], axis=0)
    total = known.sum(0)
    mean = np.where(some, np.where(known, values, 0.0).sum(0) / np.maximum(total, 1), np.nan)
    return mean, ends[0], ends[1]
