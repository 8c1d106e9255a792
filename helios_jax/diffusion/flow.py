"""Rectified flow: the straight path between noise and data, and the shifts of its time axis.

Sampling, training and the solvers share these conventions (diffusers 0.42.1, arXiv 2603.04379):

    (1)  x_s   = (1 - s) x_end + s x_start        s in [0, 1]; noise is at s = 1, data at s = 0
    (2)  v     = x_start - x_end                  what the network predicts
    (3)  x_end = x_s - s v
    (4)  s'    = f s / (1 + (f - 1) s)            shift by a factor f > 0; keeps 0 and 1

f is ``shift`` for the static shift, e^mu for the "exponential" and mu for the "linear" dynamic shift,
where mu depends on the number of tokens n:

    (5)  mu(n) = base_shift + (n - base_seq_len) (max_shift - base_shift) / (max_seq_len - base_seq_len)

Schedules are computed on the host in float64 and reach the device as small tables.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import SchedulerConfig
from helios_jax.typing import Array, DType, Float

Sigma = float | Float[Array, "..."]
"""A noise level, or an array of them that broadcasts against the sample."""


def interpolate(start: Float[Array, "*shape"], end: Float[Array, "*shape"], sigma: Sigma) -> Float[Array, "*shape"]:
    """The point x_s between noise ``start`` and data ``end``, equation (1)."""
    return (1 - sigma) * end + sigma * start


def velocity(start: Float[Array, "*shape"], end: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The velocity of the path from data ``end`` to noise ``start``, equation (2)."""
    return start - end


def predict_clean(x: Float[Array, "*shape"], v: Float[Array, "*shape"], sigma: Sigma) -> Float[Array, "*shape"]:
    """The end point that ``x`` at ``sigma`` and the predicted velocity imply, equation (3)."""
    return x - sigma * v


def shift_sigmas(sigmas: Float[np.ndarray, "*shape"], factor: float) -> Float[np.ndarray, "*shape"]:
    """Moves noise levels towards 1 (factor above 1) or 0 (below 1), equation (4).

    Raises:
        ValueError: ``factor`` is not positive, so that (4) would leave [0, 1].
    """
    if not factor > 0:
        raise ValueError(f"shift factor {factor} must be positive; use more tokens or another base_shift and max_shift")
    return factor * sigmas / (1 + (factor - 1) * sigmas)


def dynamic_shift_mu(config: SchedulerConfig, num_tokens: int) -> float:
    """mu(n) of the dynamic shift, equation (5); extrapolates on both sides."""
    slope = (config.max_shift - config.base_shift) / (config.max_seq_len - config.base_seq_len)
    return num_tokens * slope + config.base_shift - slope * config.base_seq_len


def dynamic_shift_factor(config: SchedulerConfig, mu: float) -> float:
    """The factor f of equation (4), from mu as ``config.time_shift_type`` defines."""
    return math.exp(mu) if config.time_shift_type == "exponential" else mu


def round_to(x: Float[Array, "*shape"], dtype: DType) -> Float[Array, "*shape"]:
    """Rounds values to those that ``dtype`` can hold, keeping the dtype of ``x``.

    A pair of casts would not do: XLA may remove it (``xla_allow_excess_precision`` is on by default),
    and whether a rounding happens would depend on what is fused.
    """
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, exponent_bits=info.nexp, mantissa_bits=info.nmant)
