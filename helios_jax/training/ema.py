"""Exponential moving averages of trained parameters.

    e <- d_c e + (1 - d_c) p       d_c = min((1 + n) / (10 + n), decay), n = c - start - 1; 0 for n <= 0        (1)

where c = 1, 2, ... counts the updates of the average. Up to update start + 1 the average is a copy of the parameters;
then the growing decay lets it forget that copy quickly. Source: the schedule of the published training
(arXiv 2603.04379).
"""

import dataclasses

import jax
import jax.numpy as jnp

from helios_jax.training.params import Params
from helios_jax.typing import Array, Float, Int
from helios_jax.user_input import finite_number, whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema:
    """A moving average.

    Attributes:
        decay: Largest decay.
        start: Updates of the average that only copy, before averaging starts.
    """

    decay: float = 0.99
    start: int = 0

    def __post_init__(self) -> None:
        finite_number(self.decay, "ema.decay")
        whole_number(self.start, "ema.start")
        if not 0 <= self.decay < 1 or self.start < 0:
            raise ValueError(f"need 0 <= decay < 1 and start >= 0, got decay={self.decay}, start={self.start}")

    def decay_at(self, count: Int[Array, ""] | int) -> Float[Array, ""]:
        """The decay d_c of update ``count`` of the average, counted from 1."""
        n = jnp.asarray(count, jnp.float32) - self.start - 1
        return jnp.where(n <= 0, 0.0, jnp.minimum((1 + n) / (10 + n), self.decay))

    def update(self, average: Params, params: Params, count: Int[Array, ""]) -> Params:
        """Performs update number ``count`` of the average."""
        decay = self.decay_at(count)
        return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, average, params)
