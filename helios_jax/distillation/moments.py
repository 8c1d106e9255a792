"""Moments of latents: a divergence that keeps the generator's mean and variance near those of data.

With mean m and variance v of all elements of a sample's latents, and m_0 and v_0 those of data,

    KL(m, v) = (log(v_0 / v) + (v + (m - m_0)^2) / v_0 - 1) / 2                                           (1)
    L = (1 - a) KL(all frames) + a KL(first frame)                                                        (2)

of the whole sample, or the mean over its chunks (arXiv 2603.04379, whose constants are the defaults here; off in the
published runs). A first frame encodes one pixel frame and the others four each, hence its own constants.
"""

import dataclasses

import jax.numpy as jnp

from helios_jax.typing import Array, Float
from helios_jax.user_input import finite_number, yes_or_no

CHUNK_FRAMES = 9
"""Latent frames of a chunk."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and variance of latents in model space, over all elements: m_0 and v_0 of equation (1)."""

    mean: float
    variance: float

    def __post_init__(self) -> None:
        finite_number(self.mean, "mean")
        if not finite_number(self.variance, "variance", at_least=0):
            raise ValueError("variance=0 must be above 0")

    @classmethod
    def of(cls, latents: Float[Array, "B T H W C"]) -> "Moments":
        """The means over the samples of each sample's mean and variance, for constants of other data."""
        mean, variance = _moments(latents)
        return cls(mean=float(mean.mean()), variance=float(variance.mean()))


OUTPUT = Moments(mean=0.00657, variance=0.85127)
"""Published moments of all frames of a sample."""

OUTPUT_FIRST = Moments(mean=-0.01618, variance=0.27996)
"""Published moments of a sample's first frame."""

CHUNK = Moments(mean=0.01906, variance=0.81397)
"""Published moments of all frames of a chunk."""

CHUNK_FIRST = Moments(mean=-0.01579, variance=0.29913)
"""Published moments of a chunk's first frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentMoments:
    """Settings of the loss (2); the defaults are published.

    Attributes:
        weight: Weight of the loss among the regularisers.
        all_frames: Moments of all frames.
        first_frame: Moments of the first frame; ``None``: it gets no term of its own, a = 0.
        first_share: a.
        per_chunk: Take the moments of each chunk instead of the whole sample.
    """

    weight: float = 1.0
    all_frames: Moments = OUTPUT
    first_frame: Moments | None = None
    first_share: float = 0.3
    per_chunk: bool = False

    def __post_init__(self) -> None:
        finite_number(self.weight, "weight", at_least=0)
        finite_number(self.first_share, "first_share", at_least=0, at_most=1)
        yes_or_no(self.per_chunk, "per_chunk")

    @classmethod
    def of_output(cls) -> "LatentMoments":
        """The published moments of whole samples and their first frames."""
        return cls(all_frames=OUTPUT, first_frame=OUTPUT_FIRST)

    @classmethod
    def of_chunks(cls) -> "LatentMoments":
        """The published moments of chunks and their first frames."""
        return cls(all_frames=CHUNK, first_frame=CHUNK_FIRST, per_chunk=True)


def gaussian_kl(mean: Float[Array, "*B"], variance: Float[Array, "*B"], target: Moments) -> Float[Array, "*B"]:
    """The divergence of N(mean, variance) from the target's Gaussian, equation (1)."""
    ratio = (variance + jnp.square(mean - target.mean)) / target.variance
    return 0.5 * (jnp.log(target.variance / variance) + ratio - 1)


def moments_loss(
    x: Float[Array, "B T H W C"], settings: LatentMoments, chunk_frames: int = CHUNK_FRAMES
) -> Float[Array, " B"]:
    """The loss of every sample, equation (2).

    Raises:
        ValueError: ``settings.per_chunk``, and the frames of ``x`` are not whole chunks.
    """
    pieces = split_chunks(x, chunk_frames) if settings.per_chunk else [x]
    share = 0.0 if settings.first_frame is None else settings.first_share
    total = jnp.zeros(x.shape[0])
    for piece in pieces:
        loss = (1 - share) * gaussian_kl(*_moments(piece), settings.all_frames)
        if settings.first_frame is not None:
            loss += share * gaussian_kl(*_moments(piece[:, :1]), settings.first_frame)
        total += loss / len(pieces)
    return total


def split_chunks(x: Float[Array, "B T H W C"], chunk_frames: int) -> list[Float[Array, "B {chunk_frames} H W C"]]:
    """The chunks of a sample. Raises ValueError if its frames are not whole chunks."""
    if x.shape[1] == 0 or x.shape[1] % chunk_frames:
        raise ValueError(f"{x.shape[1]} latent frames are not whole chunks of {chunk_frames}")
    return jnp.split(x, x.shape[1] // chunk_frames, axis=1)


def _moments(x: Float[Array, "B T H W C"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    x = x.astype(jnp.float32)
    return x.mean((1, 2, 3, 4)), x.var((1, 2, 3, 4))
