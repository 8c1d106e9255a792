"""Distribution matching distillation: the gradient that moves the generator's samples to where data is likely.

Two scores judge a noised sample x of the generator: the real one knows the data, the fake one (the same network with
adapters) learns the generator's current distribution. With weight w = 3 on the difference between the predictions with
and without the text, and everything but x constant,

    x_s  = (1 - s) x + s eps                                                                              (1)
    f    = x_s - s v_fake(x_s, t, text)                                                                   (2)
    r    = r_c + w (r_c - r_u)      r_c, r_u = x_s - s v_real(x_s, t, text or negative text)              (3)
    g    = (f - r) / mean |x - r|   per sample, 0 where that is not finite                                (4)
    loss = mean |x - (x - g)|^2 / 2 with x - g constant: its gradient in x is g over the number of elements  (5)

The critic is trained by plain flow matching on the generator's samples:

    loss = mean |v_fake(x_s, t, text) - (eps - x)|^2                                                      (6)

(arXiv 2311.18828, 2405.14867; numbers from arXiv 2603.04379.) The generator's noise levels go from coarse to
fine during training, the critic's do not. At step n, with p = min(n / 500, 1), c = (1 + cos pi p) / 2,

    u ~ Beta(1 + 3 c, 1 + c / 2);    critic: u ~ U(0.001, 1)                                              (7)
    t = 1000 u', u' = f u / (1 + (f - 1) u)    f: linear dynamic shift, if above 1, else u' = u              (8)
        clipped to [20, 980] and rounded
    s = the entry of the shifted table (1, 0.999, ..., 0.001) that is nearest to t / 1000                 (9)
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.diffusion.flow import shift_sigmas
from helios_jax.typing import Array, Float, Int, Key

GUIDANCE = 3.0
"""w of equation (3): ordinary guidance with scale 4."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreLevels:
    """Noise levels at which the scores are compared and the critic is trained, equations (7) to (9).

    Attributes:
        shift: f of (8) and (9): ``training_shift_factor("linear", tokens of the sample)``; 1.919 for 9 x 48 x 80
            latents. Timesteps are shifted only upwards, as in the published training, although the table of (9) is
            shifted by any f: samples of few tokens have f < 1.
        uniform_from: Step from which the generator's levels are uniform before the shift.
        low: Smallest timestep.
        high: Largest timestep.
    """

    shift: float
    uniform_from: int = 500
    low: float = 20.0
    high: float = 980.0

    def __post_init__(self) -> None:
        if self.uniform_from < 1 or not 0 < self.low <= self.high < 1000:
            raise ValueError(
                f"uniform_from={self.uniform_from} must be at least 1 and 0 < low={self.low} <= high={self.high} < 1000"
            )

    def for_generator(self, key: Key[Array, ""], step: Int[Array, ""] | int) -> Float[Array, ""]:
        """A timestep for the generator by (7) and (8), at ``step`` of the run, counted from 0."""
        c = 0.5 * (1 + jnp.cos(math.pi * jnp.minimum(step / self.uniform_from, 1.0)))
        return self._timestep(jax.random.beta(key, 1 + 3 * c, 1 + 0.5 * c))

    def for_critic(self, key: Key[Array, ""]) -> Float[Array, ""]:
        """A timestep for the critic by (7) and (8)."""
        return self._timestep(jax.random.uniform(key, minval=1e-3))

    def sigma(self, timestep: Float[Array, " B"]) -> Float[Array, " B"]:
        """The noise level that belongs to a timestep, equation (9)."""
        table = jnp.asarray(shift_sigmas(np.linspace(1, 1e-3, 1000), self.shift), jnp.float32)
        return table[jnp.argmin(jnp.abs(1000 * table - timestep[:, None]), axis=1)]

    def _timestep(self, u: Float[Array, ""]) -> Float[Array, ""]:
        """The timestep for ``u``, equation (8)."""
        factor = max(self.shift, 1.0)
        shifted = factor * u / (1 + (factor - 1) * u)
        return jnp.round(jnp.clip(1000 * shifted, self.low, self.high))


def guide(
    cond: Float[Array, "*shape"], uncond: Float[Array, "*shape"], weight: float = GUIDANCE
) -> Float[Array, "*shape"]:
    """The real score's end point, equation (3)."""
    return cond + weight * (cond - uncond)


def dmd_gradient(
    x: Float[Array, "B T H W C"], fake: Float[Array, "B T H W C"], real: Float[Array, "B T H W C"]
) -> Float[Array, "B T H W C"]:
    """The gradient of distribution matching, equation (4), in fp32.

    Args:
        x: The generator's sample.
        fake: End point of the fake score, (2).
        real: End point of the real score, (3).
    """
    x, fake, real = (jax.lax.stop_gradient(array).astype(jnp.float32) for array in (x, fake, real))
    gradient = (fake - real) / jnp.abs(x - real).mean((1, 2, 3, 4), keepdims=True)
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def dmd_loss(x: Float[Array, "B T H W C"], gradient: Float[Array, "B T H W C"]) -> Float[Array, ""]:
    """The generator's loss, equation (5).

    Sampling counterpart: x is the end point m that the step of ``diffusion.solvers.Dmd`` predicts (its equation (2))
    and that ``Dmd.finish`` returns after the last step of a level. The loss moves this m towards the real score's.

    Args:
        x: The generator's sample, from ``rollout``.
        gradient: From ``dmd_gradient``.
    """
    x = x.astype(jnp.float32)
    return 0.5 * jnp.square(x - jax.lax.stop_gradient(x - gradient)).mean()


def critic_loss(
    predicted: Float[Array, "B T H W C"], noise: Float[Array, "B T H W C"], x: Float[Array, "B T H W C"]
) -> Float[Array, ""]:
    """The critic's loss, equation (6).

    Sampling counterpart: the velocity eps - x that is learnt here is inverted by ``diffusion.flow.predict_clean``,
    x_s - s v = x, which is how (2) reads an end point from it and how the step of ``diffusion.solvers.Dmd`` begins.

    Args:
        predicted: Velocity of the fake score at x_s.
        noise: eps of (1).
        x: The generator's sample, through which no gradient passes.
    """
    target = jax.lax.stop_gradient(noise.astype(jnp.float32) - x.astype(jnp.float32))
    return jnp.square(predicted.astype(jnp.float32) - target).mean()
