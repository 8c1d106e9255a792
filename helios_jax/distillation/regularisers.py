"""Optional regularisers of the generator. All are off in the published runs (arXiv 2603.04379).

With c_i the chunks of a sample x, E and D the VAE's encoder and decoder in model space, and ``stop`` for a value that
is constant under the gradient:

re-encoding: the sample is replaced by one that the VAE could have produced, and the gradient passes straight through,

    x' = x + stop(E(D(x)) - x)                                                                            (1)

smoothness: a chunk begins where the chunk before it ends; e_i is the last pixel frame of c_i, encoded as an image,

    L_s = mean_i mean |c_(i+1)[0] - stop(e_i)|^2 / 2                                                      (2)

consistency: on level l, the end point m_e at the exit agrees with those of the steps k < e, which have no gradient,

    L_c = sum_l mean_(k < e) mean |m_e - stop(m_k)|^2 / 2        0 for a level with e = 0                 (3)

moments: L_m of ``distillation.moments`` keeps mean and variance of the latents near those of data. In all,

    total = w_s L_s + w_c L_c + w_m L_m                                                                   (4)

Every term is a mean over the samples of the batch. Reward weighting, the remaining option, is in ``rewards``.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from helios_jax.distillation.moments import CHUNK_FRAMES, LatentMoments, moments_loss, split_chunks
from helios_jax.distillation.rewards import Weights
from helios_jax.models.network import Network
from helios_jax.models.vae import WanVae, denormalize, normalize
from helios_jax.typing import Array, Bool, Float
from helios_jax.user_input import finite_number

SMOOTHNESS = 0.01
"""The published w_s."""

CONSISTENCY = 0.25
"""The published w_c."""

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regularisers:
    """Which regularisers are on, and their weights; none by default.

    Attributes:
        reencode: Which chunk of the sample to re-encode and to train on, by (1): the first or the last one. The
            caller applies ``reencode`` before it asks for scores.
        smoothness: w_s; published 0.01.
        consistency: w_c; published 0.25.
        moments: Moments of the latents; ``None``: free.
        rewards: Names and weights of scores, as in ``(("motion", 2.0),)``, that multiply the loss of a sample.
    """

    reencode: Literal["none", "first", "last"] = "none"
    smoothness: float = 0.0
    consistency: float = 0.0
    moments: LatentMoments | None = None
    rewards: Weights = ()

    def __post_init__(self) -> None:
        if self.reencode not in ("none", "first", "last"):
            raise ValueError(f"reencode={self.reencode!r} must be 'none', 'first' or 'last'")
        finite_number(self.smoothness, "smoothness", at_least=0)
        finite_number(self.consistency, "consistency", at_least=0)
        names = [name for name, _ in self.rewards]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards={self.rewards} must name each score once")
        for name, weight in self.rewards:
            finite_number(weight, f"the weight of reward {name!r}")

    @property
    def need_vae(self) -> bool:
        """Whether a regulariser decodes or encodes."""
        return self.reencode != "none" or self.smoothness > 0

    @property
    def have_loss(self) -> bool:
        """Whether ``regulariser_loss`` has a term."""
        return self.smoothness > 0 or self.consistency > 0 or self.moments is not None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelEnd:
    """The end points that a rollout predicted on one level.

    Attributes:
        last: m_e, the one at the exit.
        earlier: m_k of the steps before it; ``None`` if there was none, or if nobody needs them.
        taken: Which samples took those steps; ``None``: all of them. Samples on other routes may have exited before.
    """

    last: Float[Array, "B T H W C"]
    earlier: Float[Array, "steps B T H W C"] | None = None
    taken: Bool[Array, "steps B"] | None = None


def reencode(
    vae: Network[WanVae],
    x: Float[Array, "B T H W C"],
    which: Literal["first", "last"],
    chunk_frames: int = CHUNK_FRAMES,
) -> Float[Array, "B {chunk_frames} H W C"]:
    """The first or the last chunk of a sample after a pass through the VAE, equation (1).

    Chunks are decoded separately, as in sampling, so that the wanted pixels come from one chunk. The result has the
    values of the posterior's mean; its gradient with respect to this chunk of ``x`` is the identity.

    Raises:
        ValueError: The frames of ``x`` are not whole chunks.
    """
    chunk = split_chunks(x, chunk_frames)[0 if which == "first" else -1]
    again = _encode(vae, _decode(vae, chunk))
    return chunk + jax.lax.stop_gradient(again - chunk)


def border_loss(
    vae: Network[WanVae],
    x: Float[Array, "B T H W C"],
    previous: Float[Array, "B T2 H W C"] | None = None,
    chunk_frames: int = CHUNK_FRAMES,
) -> Float[Array, " B"]:
    """Smoothness of every sample, equation (2).

    Args:
        vae: The VAE.
        x: Whole chunks.
        previous: The chunk before ``x``, for rollouts of one chunk after a given past. A sample whose previous chunk
            is all zeros has no past and no border there.
        chunk_frames: Latent frames of a chunk.

    Raises:
        ValueError: The frames of ``x`` are not whole chunks, or there is no border.
    """
    chunks = split_chunks(x, chunk_frames)
    before = chunks[:-1] if previous is None else [previous, *chunks[:-1]]
    if not before:
        raise ValueError("smoothness needs a border: two chunks, or one chunk and the previous one")
    errors, counts = jnp.zeros(x.shape[0]), jnp.zeros(x.shape[0])
    for chunk, following in zip(before, chunks[-len(before) :], strict=True):
        # Only the last pixel frame counts, but a causal decoder needs the whole chunk for it.
        image = _encode(vae, _decode(vae, chunk)[:, -1:])
        exists = jnp.any(chunk != 0, axis=(1, 2, 3, 4)).astype(jnp.float32)
        errors += exists * _half_squares(following[:, :1] - jax.lax.stop_gradient(image))
        counts += exists
    return errors / jnp.maximum(counts, 1.0)


def consistency_loss(levels: Sequence[LevelEnd]) -> Float[Array, " B"]:
    """Consistency of every sample, equation (3)."""
    total = jnp.zeros(levels[-1].last.shape[0])
    for level in levels:
        if level.earlier is not None and len(level.earlier):
            difference = level.last.astype(jnp.float32) - jax.lax.stop_gradient(level.earlier)
            errors = jax.vmap(_half_squares)(difference)
            taken = jnp.ones_like(errors) if level.taken is None else level.taken.astype(jnp.float32)
            total += (taken * errors).sum(0) / jnp.maximum(taken.sum(0), 1.0)
    return total


def regulariser_loss(
    settings: Regularisers,
    levels: Sequence[LevelEnd],
    *,
    vae: Network[WanVae] | None = None,
    previous: Float[Array, "B T2 H W C"] | None = None,
    chunk_frames: int = CHUNK_FRAMES,
) -> tuple[Float[Array, ""], Metrics]:
    """The total of equation (4), and each term without its weight under its name.

    Args:
        settings: Which terms, with their weights.
        levels: What the rollout predicted, lowest level first; the ``last`` of the last one is the sample x.
        vae: The VAE, for smoothness.
        previous: See ``border_loss``.
        chunk_frames: Latent frames of a chunk.

    Raises:
        ValueError: Smoothness is on without a VAE or without a border.
    """
    x = levels[-1].last
    terms: dict[str, tuple[float, Float[Array, " B"]]] = {}
    if settings.smoothness > 0:
        if vae is None:
            raise ValueError("the smoothness regulariser needs the VAE")
        terms["smoothness"] = settings.smoothness, border_loss(vae, x, previous, chunk_frames)
    if settings.consistency > 0:
        terms["consistency"] = settings.consistency, consistency_loss(levels)
    if settings.moments is not None:
        terms["moments"] = settings.moments.weight, moments_loss(x, settings.moments, chunk_frames)
    total = sum((weight * values.mean() for weight, values in terms.values()), jnp.zeros(()))
    metrics = {name: values.mean() for name, (_, values) in terms.items()}
    return total, {"regularisers": total, **metrics}


def regulariser_cotangents(
    settings: Regularisers, levels: Sequence[LevelEnd], **arguments: object
) -> tuple[tuple[Float[Array, "B T _ _ C"], ...], Metrics]:
    """The gradient of ``regulariser_loss`` with respect to the ``last`` of every level, and the metrics.

    The caller adds them to the other cotangents of a walk's exits: the last one to that of the sample, the others on
    their levels.
    """

    def loss(lasts: Sequence[Array]) -> tuple[Array, Metrics]:
        given = [dataclasses.replace(level, last=last) for level, last in zip(levels, lasts, strict=True)]
        return regulariser_loss(settings, given, **arguments)  # type: ignore[arg-type]

    return jax.grad(loss, has_aux=True)(tuple(level.last for level in levels))


def _half_squares(x: Float[Array, "B T H W C"]) -> Float[Array, " B"]:
    return 0.5 * jnp.square(x.astype(jnp.float32)).mean((1, 2, 3, 4))


def _decode(vae: Network[WanVae], latents: Float[Array, "B T H W C"]) -> Float[Array, "B F _ _ P"]:
    return vae.module.decode(denormalize(vae.config, latents))


def _encode(vae: Network[WanVae], frames: Float[Array, "B F _ _ P"]) -> Float[Array, "B T H W C"]:
    mean, _ = vae.module.encode(frames)
    return normalize(vae.config, mean)
