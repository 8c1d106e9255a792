"""Named draws that the recording scripts and the tests make alike, so that none has to be stored.

numpy's legacy generator is frozen: its streams never change between versions.
"""

import zlib

import numpy as np


class NamedDraws:
    """A noise source whose every draw follows from (seed, name) alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _generator(self, name: str) -> np.random.RandomState:
        return np.random.RandomState([self.seed, zlib.crc32(name.encode())])

    def normal(self, name: str, shape) -> np.ndarray:
        """Standard normal values."""
        return self._generator(name).standard_normal(tuple(shape)).astype(np.float32)

    def uniform(self, name: str, shape) -> np.ndarray:
        """Uniform values in [0, 1)."""
        return np.asarray(self._generator(name).random_sample(tuple(shape)), np.float32)
