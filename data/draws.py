"""The random draws of the host: the same on every platform and in every version of numpy.

All random numbers for data come from here. Scenes use ``Draws``, a stream of numbers for each (seed, index). Windows of
clips use ``uniform``, one number for each (seed, position), because a loader needs thousands a second. Noise and
everything else on the devices comes from JAX's keys.

numpy promises the bit stream of Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011),
but not what ``Generator`` methods compute from it. Numbers are therefore computed from the raw 64-bit words w by

    below(n) = floor(n * floor(w / 2^32) / 2^32).                                        (1)
"""

from collections.abc import Sequence

import numpy as np

_WORD = 2**64


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) of a position: SplitMix64 (Steele, Lea and Flood 2014), of which 53 bits are kept."""
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) % _WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % _WORD
    return ((z ^ z >> 31) >> 11) * 2.0**-53


class Draws:
    """The stream of random numbers that belongs to ``(seed, index)``.

    Args:
        seed: Any integer of 64 bits, signed or not.
        index: The same; every pair has a stream of its own.
    """

    def __init__(self, seed: int, index: int) -> None:
        self._words = np.random.Philox(key=np.array([seed % _WORD, index % _WORD], np.uint64))

    def below(self, n: int) -> int:
        """An integer in [0, n) by (1), for 0 < n < 2^32."""
        if not 0 < n < 2**32:
            raise ValueError(f"need 0 < n < 2^32, got {n}")
        return n * (self._words.random_raw() >> 32) >> 32

    def choice[T](self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[self.below(len(options))]

    def sample[T](self, options: Sequence[T], k: int) -> tuple[T, ...]:
        """``k`` different ones of ``options``, in random order."""
        left = list(options)
        if not 0 <= k <= len(left):
            raise ValueError(f"cannot draw {k} different values out of {len(left)}")
        return tuple(left.pop(self.below(len(left))) for _ in range(k))
