"""The generator's gradient from the two scores, without differentiating the scores.

Equations (1) to (5) of ``dmd`` for a sample x, as a gradient in x that the rollout can be pulled back from:

    cotangent = g / (number of elements of x)                                                             (1)

Decoupled distribution matching (arXiv 2511.22677) splits g into guidance and matching, each at a noise level of its
own: with r_c, r_u, f as in ``dmd`` and x_s', f', r_c' the same at a second level,

    g = -w (r_c - r_u) / mean |x - r_c|  +  (f' - r_c') / mean |x - r_c'|                                  (2)

Scores can also be compared on a lower level of the pyramid, whose result m still holds noise e of the level's end.
Its clean estimate, with fresh noise eps, is linear in m:

    x = (m - e eps) / (1 - e),    dx/dm = 1 / (1 - e)                                                      (3)
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from helios_jax.diffusion.flow import interpolate, predict_clean
from helios_jax.distillation.dmd import GUIDANCE, dmd_gradient, guide
from helios_jax.typing import Array, Bool, Float

Metrics = dict[str, Float[Array, ""]]


@runtime_checkable
class Score(Protocol):
    """A score network with its text and context."""

    def __call__(self, x: Float[Array, "B T H W C"], timestep: Float[Array, " B"]) -> Float[Array, "B T H W C"]:
        """The velocity of ``x`` at ``timestep``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores that judge a sample.

    Attributes:
        fake: The critic: the score network with adapters.
        real: The score network without adapters.
        negative: The same with the negative prompt.
    """

    fake: Score
    real: Score
    negative: Score


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """Where a sample is judged.

    Attributes:
        noise: eps of equation (1) of ``dmd``.
        timestep: Timestep of each sample.
        sigma: Noise level of each sample.
    """

    noise: Float[Array, "B T H W C"]
    timestep: Float[Array, " B"]
    sigma: Float[Array, " B"]

    def noised(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """x_s, equation (1) of ``dmd``."""
        return interpolate(self.noise, x, per_sample(self.sigma))

    def end_point(self, score: Score, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """The clean sample that a score predicts from x_s, fp32."""
        noised = self.noised(x)
        return predict_clean(noised, score(noised, self.timestep).astype(jnp.float32), per_sample(self.sigma))


def score_cotangent(
    scores: Scores, x: Float[Array, "B T H W C"], level: NoiseLevel, guidance: float = GUIDANCE
) -> tuple[Float[Array, "B T H W C"], Metrics]:
    """The gradient of the loss of distribution matching in the generator's sample, equation (1).

    Args:
        scores: The scores.
        x: The generator's sample, fp32.
        level: Where it is judged.
        guidance: w of ``dmd.guide``.

    Returns:
        The gradient, and the metrics "loss" and "dmd_gradient" (root mean square of g).
    """
    fake, real = level.end_point(scores.fake, x), level.end_point(scores.real, x)
    real = guide(real, level.end_point(scores.negative, x), guidance)
    return _as_cotangent(dmd_gradient(x, fake, real))


def decoupled_cotangent(
    scores: Scores,
    x: Float[Array, "B T H W C"],
    guided_at: NoiseLevel,
    matched_at: NoiseLevel,
    guidance: float = GUIDANCE,
) -> tuple[Float[Array, "B T H W C"], Metrics]:
    """``score_cotangent`` with guidance and matching at noise levels of their own, equation (2)."""
    cond, uncond = guided_at.end_point(scores.real, x), guided_at.end_point(scores.negative, x)
    # With fake = cond and the "real" score at cond + w (cond - uncond), ``dmd_gradient`` would take its mean over
    # another distance: here both terms are normalised by the distance to the score without guidance.
    augmented = _normalised(-guidance * (cond - uncond), x, cond)
    real = matched_at.end_point(scores.real, x)
    return _as_cotangent(augmented + dmd_gradient(x, matched_at.end_point(scores.fake, x), real))


def clean_estimate(
    m: Float[Array, "B T H W C"], noise: Float[Array, "B T H W C"], end: float
) -> Float[Array, "B T H W C"]:
    """The clean sample of a level's result, equation (3).

    Args:
        m: Result of the level.
        noise: eps.
        end: Noise level e at which the level ends (``diffusion.pyramid.Level.end``).
    """
    return (m - end * noise) / (1 - end)


def per_sample(
    values: Float[Array, " B"] | Bool[Array, " B"],
) -> Float[Array, "B 1 1 1 1"] | Bool[Array, "B 1 1 1 1"]:
    """One value per sample, ready to be broadcast against clips."""
    return values[:, None, None, None, None]


def _normalised(
    gradient: Float[Array, "B T H W C"], x: Float[Array, "B T H W C"], real: Float[Array, "B T H W C"]
) -> Float[Array, "B T H W C"]:
    gradient = gradient / jnp.abs(x - real).mean((1, 2, 3, 4), keepdims=True)
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def _as_cotangent(gradient: Float[Array, "B T H W C"]) -> tuple[Float[Array, "B T H W C"], Metrics]:
    # The loss is mean g^2 / 2 (equation (5) of ``dmd``), since its target is x - g.
    square = jnp.square(gradient).mean()
    return gradient / gradient.size, {"loss": 0.5 * square, "dmd_gradient": jnp.sqrt(square)}
