"""Reward weighting: samples that a judge prefers count more in the generator's loss.

A reward scores each sample in one or more ways. With a weight w_i for score s_i, the loss of a sample is multiplied by

    r = exp(mean_i w_i clip(s_i, -5, 5))                                                                  (1)

so a score of 0 changes nothing. No gradient passes through the score (arXiv 2603.04379, which has w = 2 for visual
quality, motion quality and text alignment as judged by a vision-language model; off in the published runs).
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from helios_jax.typing import AnyArray, Array, Float

WEIGHT = 2.0
"""The published w_i of equation (1)."""

LIMIT = 5.0
"""Scores are clipped to [-LIMIT, LIMIT]."""

Weights = tuple[tuple[str, float], ...]
"""(name of a score, w_i) of equation (1)."""


@runtime_checkable
class Reward(Protocol):
    """A judge of samples, on the host or on a device. Scores should be centred on 0, since 0 is neutral in (1)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores."""
        ...

    @property
    def reads(self) -> Literal["frames", "latents"]:
        """What it judges. "frames" needs the VAE: the caller decodes each chunk before it asks."""
        ...

    def __call__(self, samples: AnyArray, captions: Sequence[str]) -> Mapping[str, Float[np.ndarray, " B"]]:
        """Scores every sample.

        Args:
            samples: Frames, uint8 [B, F, H, W, 3], or latents in model space, float [B, T, H, W, C]; see ``reads``.
            captions: What each sample should show.

        Returns:
            Scores of the samples under each of ``names``.
        """
        ...


def reward_weights(scores: Mapping[str, Float[AnyArray, " B"]], weights: Weights) -> Float[Array, " B"]:
    """The factor of each sample's loss, equation (1), in fp32.

    Args:
        scores: From a ``Reward``; further scores are ignored.
        weights: Names of the scores to use, and their weights.

    Raises:
        ValueError: There are no weights, or a score is missing.
    """
    if missing := [name for name, _ in weights if name not in scores]:
        raise ValueError(f"no score {missing[0]!r}; the reward gives {', '.join(scores) or 'none'}")
    if not weights:
        raise ValueError("no weights are given; name at least one score")
    terms = [weight * jnp.clip(jnp.asarray(scores[name], jnp.float32), -LIMIT, LIMIT) for name, weight in weights]
    return jnp.exp(sum(terms[1:], terms[0]) / len(terms))


def weigh(per_sample: Float[Array, "B ..."], factors: Float[Array, " B"]) -> Float[Array, "B ..."]:
    """Multiplies losses of samples, or the gradients that each sample receives, by the samples' factors."""
    return per_sample * factors.reshape(-1, *[1] * (per_sample.ndim - 1))
