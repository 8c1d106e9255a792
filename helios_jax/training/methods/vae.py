"""Training of a (small) VAE of the Wan2.1 kind, and the statistics that its latents are normalised with.

    z    = mean + exp(logvar / 2) eps                                                   raw latents       (1)
    loss = mean rho(decode(z) - x) + kl_weight mean (mean^2 + exp(logvar) - 1 - logvar) / 2               (2)

with rho(d) = |d| ("l1") or sqrt(d^2 + 1e-6) ("charbonnier"), x in [-1, 1]. Both means are over elements.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import VaeConfig
from helios_jax.models.network import Network
from helios_jax.models.vae import WanVae, in_slices
from helios_jax.training.batch import VideoBatch
from helios_jax.training.methods import NOISE, Metrics, fold
from helios_jax.training.networks import Networks
from helios_jax.typing import AnyArray, Array, Float, Key, UInt8

_CHARBONNIER_EPSILON = 1e-6
"""Square of the error below which the Charbonnier penalty is quadratic."""


def to_model_range(frames: UInt8[AnyArray, "B F H W P"]) -> Float[Array, "B F H W P"]:
    """0 ... 255 to [-1, 1], fp32."""
    return jnp.asarray(frames).astype(jnp.float32) / 127.5 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vae:
    """Trains ``networks.vae`` on ``VideoBatch``; the clips have 4k + 1 frames, as a chunk has.

    Attributes:
        penalty: "l1" or "charbonnier", smooth at zero.
        kl_weight: Weight of the KL divergence from the standard normal, per element of the latents. It only has to
            keep them bounded: ``measure_latents`` normalises them.
    """

    penalty: Literal["l1", "charbonnier"] = "charbonnier"
    kl_weight: float = 1e-4

    def __post_init__(self) -> None:
        if self.penalty not in ("l1", "charbonnier"):
            raise ValueError(f"penalty {self.penalty!r} must be 'l1' or 'charbonnier'")

    def loss(self, networks: Networks, batch: VideoBatch, keys: Key[Array, " B"]) -> tuple[Float[Array, ""], Metrics]:
        """See ``Method``.

        Raises:
            ValueError: The clips do not have 4k + 1 frames.
        """
        return self.loss_from_draws(networks, batch, self.draw(keys, networks.vae.config, batch))

    @staticmethod
    def draw(keys: Key[Array, " B"], config: VaeConfig, batch: VideoBatch) -> Float[Array, "B T h w C"]:
        """eps of equation (1)."""
        _, frames, height, width, _ = batch.frames.shape
        if (frames - 1) % config.scale_factor_temporal:
            raise ValueError(
                f"clips of {frames} frames; the VAE is trained on {config.scale_factor_temporal}k + 1, as 33"
            )
        factor = config.scale_factor_spatial
        shape = (1 + (frames - 1) // config.scale_factor_temporal, height // factor, width // factor, config.z_dim)
        return jax.vmap(lambda key: jax.random.normal(fold(key, NOISE), shape))(keys)

    def loss_from_draws(
        self, networks: Networks, batch: VideoBatch, noise: Float[Array, "B T h w C"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation (2); the metrics "reconstruction" and "kl" are its parts."""
        vae, video = networks.vae, to_model_range(batch.frames)
        mean, logvar = vae.encode(video)
        decoded = decode_unbounded(vae, mean + jnp.exp(0.5 * logvar) * noise)
        difference = decoded.astype(jnp.float32) - video
        if self.penalty == "l1":
            reconstruction = jnp.abs(difference).mean()
        else:
            reconstruction = jnp.sqrt(difference**2 + _CHARBONNIER_EPSILON).mean()
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
        return reconstruction + self.kl_weight * kl, {"reconstruction": reconstruction, "kl": kl}


def decode_unbounded(vae: WanVae, latents: Float[Array, "B T h w C"]) -> Float[Array, "B F H W P"]:
    """``WanVae.decode`` without its last step: where that clips to [-1, 1], no gradient would come back."""
    return in_slices(vae.decoder, vae.post_quant_conv.over(latents.astype(vae.dtype)), None)


@jax.jit
def _moments(
    vae: Network[WanVae], frames: UInt8[Array, "B F H W P"]
) -> tuple[Float[Array, " C"], Float[Array, " C"], Float[Array, " C"]]:
    """Per channel: the mean of the latents, their variance within the batch, and the mean posterior variance."""
    mean, logvar = vae.module.encode(to_model_range(frames))
    axes = (0, 1, 2, 3)
    return mean.mean(axes), mean.var(axes), jnp.exp(logvar).mean(axes)


def measure_latents(vae: Network[WanVae], clips: Iterable[VideoBatch]) -> VaeConfig:
    """The configuration of ``vae`` with the mean and standard deviation of its latents over ``clips``, per channel.

    Latents are samples of the posterior: their variance is that of the means plus the mean of the variances.

    Args:
        vae: The VAE.
        clips: Clips cut as they will be encoded, in chunks of 4k + 1 frames; one compilation per shape.

    Raises:
        ValueError: There are no clips.
    """
    weights, moments = [], []
    for batch in clips:
        weights.append(batch.frames.size)
        moments.append(np.stack(_moments(vae, jnp.asarray(batch.frames))).astype(np.float64))
    if not moments:
        raise ValueError("no clips to measure the latents on; pass at least one VideoBatch")
    means, variances, posteriors = np.moveaxis(np.stack(moments), 1, 0)
    mean = np.average(means, 0, weights)
    variance = np.average(variances + posteriors + (means - mean) ** 2, 0, weights)
    return dataclasses.replace(
        vae.module.config, latents_mean=tuple(mean.tolist()), latents_std=tuple(np.sqrt(variance).tolist())
    )
