"""Noise levels of training: their density, their shift and their weights in the loss.

With u in [0, 1) drawn from a density, table entry i = floor(1000 u) of 1000:

    (1)  sigma = (1000 - i) / 1000                 t = 1000 sigma, given to the network unrounded
    (2)  sigma <- f sigma / (1 + (f - 1) sigma)    with a dynamic shift; f depends on the number of tokens

Densities and weights are those of Stable Diffusion 3 (arXiv 2403.03206, section 3.1), as in diffusers:

    (3)  logit-normal   u = sigmoid(mean + std n),  n standard normal
    (4)  mode           u = 1 - w - s (cos^2(pi w / 2) - 1 + w),  w uniform
    (5)  sigma_sqrt     weight = 1 / sigma^2
    (6)  cosmap         weight = 2 / (pi (1 - 2 sigma + 2 sigma^2))

Helios-Base is trained with the logit-normal density, weight 1 and no shift (arXiv 2603.04379).
"""

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import SchedulerConfig
from helios_jax.diffusion.flow import dynamic_shift_factor, dynamic_shift_mu, shift_sigmas
from helios_jax.typing import Array, Float, Key
from helios_jax.user_input import finite_number, whole_number

Density = Literal["logit_normal", "uniform", "mode"]
Weighting = Literal["none", "sigma_sqrt", "cosmap", "mode"]
Shift = Literal["none", "linear", "exponential"]

_MAX_EXPONENTIAL_FACTOR = 7.0
"""Training caps the exponential shift; sampling does not."""


def table_entries(u: Float[Array, "*B"], table: Float[np.ndarray, " entries"]) -> Float[Array, "*B"]:
    """Entry floor(N u) of a host table, in fp32; u = 1 counts as the last entry."""
    index = jnp.clip(jnp.floor(u * len(table)).astype(jnp.int32), 0, len(table) - 1)
    return jnp.asarray(table, jnp.float32)[index]


def training_shift_factor(shift: Shift, num_tokens: int) -> float:
    """The factor f of equation (2)."""
    if shift == "none":
        return 1.0
    config = SchedulerConfig(use_dynamic_shifting=True, time_shift_type=shift)
    factor = dynamic_shift_factor(config, dynamic_shift_mu(config, num_tokens))
    return min(factor, _MAX_EXPONENTIAL_FACTOR) if shift == "exponential" else factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimestepSampling:
    """Density, shift and weighting of the noise levels.

    Attributes:
        density: "logit_normal" (3), "uniform" or "mode" (4).
        weighting: "sigma_sqrt" (5) or "cosmap" (6); "none" and "mode" (for the density of that name) weigh all equally.
        shift: Dynamic shift (2): "none", "linear" (f = mu) or "exponential" (f = e^mu, at most 7).
        logit_mean: Mean of (3).
        logit_std: Standard deviation of (3).
        mode_scale: s of (4), from -1 to 2 / (pi - 2).
        num_train_timesteps: Entries of the table.
    """

    density: Density = "logit_normal"
    weighting: Weighting = "none"
    shift: Shift = "none"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        for field, choices in (("density", Density), ("weighting", Weighting), ("shift", Shift)):
            if getattr(self, field) not in get_args(choices):
                raise ValueError(f"{field} {getattr(self, field)!r} must be one of {', '.join(get_args(choices))}")
        finite_number(self.logit_mean, "logit_mean")
        finite_number(self.logit_std, "logit_std", at_least=0)
        # Outside these limits u of equation (4) leaves [0, 1] or does not decrease with w.
        finite_number(self.mode_scale, "mode_scale", at_least=-1, at_most=2 / (math.pi - 2))
        whole_number(self.num_train_timesteps, "num_train_timesteps", at_least=1)

    def draw(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """Draws one u from the density."""
        if self.density == "logit_normal":
            return jax.nn.sigmoid(self.logit_mean + self.logit_std * jax.random.normal(key))
        w = jax.random.uniform(key)
        if self.density == "uniform":
            return w
        return 1 - w - self.mode_scale * (jnp.cos(math.pi / 2 * w) ** 2 - 1 + w)

    def table(self, num_tokens: int) -> Float[np.ndarray, " entries"]:
        """The noise levels by table entry, equations (1) and (2), float64."""
        size = self.num_train_timesteps
        return shift_sigmas(np.arange(size, 0, -1) / size, training_shift_factor(self.shift, num_tokens))

    def at(self, u: Float[Array, " B"], num_tokens: int) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Noise level and timestep for u.

        Args:
            u: From ``draw``.
            num_tokens: Tokens of the noisy chunk, which the dynamic shift depends on.
        """
        table = self.table(num_tokens)
        return table_entries(u, table), table_entries(u, self.num_train_timesteps * table)

    def weight(self, sigma: Float[Array, " B"]) -> Float[Array, " B"]:
        """Weight of the squared error at a noise level."""
        if self.weighting == "sigma_sqrt":
            return sigma**-2
        if self.weighting == "cosmap":
            return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
        return jnp.ones_like(sigma)
