"""Training of a (small) VAE of the Wan2.1 kind, and the statistics that its latents are normalised with.

    z    = mean + exp(logvar / 2) eps                                                   raw latents       (1)
    loss = mean rho(decode(z) - x) + kl_weight mean (mean^2 + exp(logvar) - 1 - logvar) / 2               (2)

with rho(d) = |d| ("l1") or sqrt(d^2 + 1e-6) ("charbonnier"), plus square_weight d^2, and x in [-1, 1]. Both means are
over elements. Sampling decodes with the same ``models.vae.WanVae``, which clips to [-1, 1] in addition.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.config import VaeConfig
from helios_jax.models.network import Network
from helios_jax.models.vae import WanVae, in_slices, to_model_range
from helios_jax.models.vae_layers import Conv, frames_together
from helios_jax.parallel.execution import Execution
from helios_jax.training.batch import VideoBatch
from helios_jax.training.methods import NOISE, fold
from helios_jax.training.metrics import Metrics
from helios_jax.training.networks import Networks
from helios_jax.typing import Array, Float, Key, UInt8
from helios_jax.user_input import finite_number

_INITIAL_LOGVAR = -6.0
"""Logarithm of the variance of a fresh VAE's posterior."""

_CHARBONNIER_EPSILON = 1e-6
"""Square of the error below which the Charbonnier penalty is quadratic."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vae:
    """Trains ``networks.vae`` on ``VideoBatch``; the clips have 4k + 1 frames, as chunks do.

    Attributes:
        penalty: "l1" or "charbonnier", smooth at zero.
        square_weight: Weight of an added squared error, with which a fresh VAE learns small things sooner.
        kl_weight: Weight of the KL divergence from the standard normal, per element of the latents. It only has to
            keep latents bounded: ``measure_latents`` normalises them.
    """

    penalty: Literal["l1", "charbonnier"] = "charbonnier"
    square_weight: float = 0.0
    kl_weight: float = 1e-4

    def __post_init__(self) -> None:
        if self.penalty not in ("l1", "charbonnier"):
            raise ValueError(f"penalty {self.penalty!r} must be 'l1' or 'charbonnier'")
        finite_number(self.square_weight, "square_weight", at_least=0)
        finite_number(self.kl_weight, "kl_weight", at_least=0)

    def loss(
        self, networks: Networks, batch: VideoBatch, keys: Key[Array, " B"], execution: Execution
    ) -> tuple[Float[Array, ""], Metrics]:
        """See ``Method``; ``execution`` has no effect, because a VAE is not a stack of equal blocks.

        Raises:
            ValueError: The clips do not have 4k + 1 frames.
        """
        return self.loss_from_draws(networks, batch, self.draw(networks, batch, keys), execution)

    def draw(self, networks: Networks, batch: VideoBatch, keys: Key[Array, " B"]) -> Float[Array, "B T h w C"]:
        """eps of equation (1), in the shape of the latents of ``networks.vae``."""
        config = networks.vae.config
        _, frames, height, width, _ = batch.frames.shape
        if (frames - 1) % config.scale_factor_temporal:
            raise ValueError(
                f"clips of {frames} frames; the VAE is trained on {config.scale_factor_temporal}k + 1, as 33"
            )
        factor = config.scale_factor_spatial
        shape = (1 + (frames - 1) // config.scale_factor_temporal, height // factor, width // factor, config.z_dim)
        return jax.vmap(lambda key: jax.random.normal(fold(key, NOISE), shape))(keys)

    def loss_from_draws(
        self, networks: Networks, batch: VideoBatch, draws: Float[Array, "B T h w C"], execution: Execution
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation (2); the metrics "reconstruction" and "kl" are its parts, "psnr" is that of the batch in dB."""
        del execution
        vae, video = networks.vae, to_model_range(batch.frames)

        def through(
            clip: Float[Array, "F H W P"], noise: Float[Array, "T h w C"]
        ) -> tuple[Float[Array, "T h w C"], Float[Array, "T h w C"], Float[Array, "F H W P"]]:
            mean, logvar = vae.encode(clip[None])
            return mean[0], logvar[0], decode_unbounded(vae, mean + jnp.exp(0.5 * logvar) * noise)[0]

        # Attention loops over frames to save memory. Under vmap, a step of that loop takes one frame of every clip.
        with frames_together():
            mean, logvar, decoded = jax.vmap(through)(video, draws)
        difference = decoded.astype(jnp.float32) - video
        if self.penalty == "l1":
            reconstruction = jnp.abs(difference).mean()
        else:
            reconstruction = jnp.sqrt(difference**2 + _CHARBONNIER_EPSILON).mean()
        squares = jnp.square(difference).mean()
        reconstruction += self.square_weight * squares
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
        metrics = {"reconstruction": reconstruction, "kl": kl, "psnr": 10 * jnp.log10(4 / squares)}
        return reconstruction + self.kl_weight * kl, metrics


def prepare_vae(vae: WanVae) -> None:
    """Changes a VAE with random weights, in place, into one that trains easily.

    The posterior becomes narrow, because the decoder would learn to ignore latents that begin as noise of variance 1.
    The VAE treats clips as stills: no convolution sees the past yet, and latents encode every fourth frame, repeated.
    What it learns from stills therefore holds for clips of any length, and clips only have to teach it motion.
    """
    vae.quant_conv.bias[...] = vae.quant_conv.bias[...].at[vae.config.z_dim :].set(_INITIAL_LOGVAR)
    for _, module in nnx.iter_graph(vae):
        if not isinstance(module, Conv):
            continue
        kernel = module.kernel[...]
        if kernel.ndim == 5:
            present = math.sqrt(len(kernel)) * kernel[-1]  # the last tap alone, with the variance of all taps
        elif kernel.ndim == 3:
            present = jnp.tile(jnp.eye(kernel.shape[1], dtype=kernel.dtype), kernel.shape[2] // kernel.shape[1])
        else:
            continue
        module.kernel[...] = jnp.zeros_like(kernel).at[-1].set(present)


def decode_unbounded(vae: WanVae, latents: Float[Array, "B T h w C"]) -> Float[Array, "B F H W P"]:
    """``WanVae.decode`` without its last step, the clipping to [-1, 1], through which no gradient flows."""
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
        vae.config, latents_mean=tuple(mean.tolist()), latents_std=tuple(np.sqrt(variance).tolist())
    )
