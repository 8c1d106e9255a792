"""Random draws that are the same on every platform and in every version of numpy.

numpy promises the bit stream of Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011),
but not what ``Generator`` methods compute from it. Numbers are therefore computed from the raw 64-bit words w by

    below(n) = floor(n * floor(w / 2^32) / 2^32).                                        (1)
"""

from collections.abc import Sequence

import numpy as np

_WORD = 2**64


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
