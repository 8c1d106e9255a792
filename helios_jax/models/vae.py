"""The causal video VAE of Wan2.1: 4k + 1 pixel frames <-> k + 1 latent frames, each side / 8.

Raw latents x are the encoder's output and the decoder's input. The diffusion model works with

    z = (x - mean) / std                                                                        (1)

per channel, with the constants of the configuration (``normalize``, ``denormalize``).

Encoder and decoder are chains of causal layers (``vae_layers``). A whole clip is one slice without a
past. ``slice_frames`` cuts the clip along time and carries the layers' caches from slice to slice, which
limits the memory to that of one slice. On the CPU the result is the same to the last bit; on a GPU the
convolution algorithm, and with it the last bits, may depend on the length of the slice.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.config import VaeConfig
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.models.vae_layers import (
    AttentionBlock,
    Cache,
    CausalConv,
    CausalLayer,
    Conv,
    Downsample,
    ResidualBlock,
    RmsNorm,
    Upsample,
    chain,
)
from helios_jax.typing import AnyArray, Array, DType, Float, UInt8


class MidBlock(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(self, features: int, **numerics: Any) -> None:
        self.resnets = nnx.List([ResidualBlock(features, features, **numerics) for _ in range(2)])
        self.attentions = nnx.List([AttentionBlock(features, **numerics)])

    def __call__(self, x: Float[Array, "B T H W C"], cache: Cache) -> tuple[Float[Array, "B T H W C"], Cache]:
        return chain([self.resnets[0], self.attentions[0], self.resnets[1]], x, cache)


class UpBlock(nnx.Module):
    """Residual blocks of one decoder level and the step up to the next, if there is one."""

    def __init__(
        self, in_features: int, out_features: int, num_res_blocks: int, upsample: list[Upsample], **numerics: Any
    ) -> None:
        widths = [in_features, *[out_features] * num_res_blocks]
        self.resnets = nnx.List([ResidualBlock(width, out_features, **numerics) for width in widths])
        self.upsamplers = nnx.List(upsample)

    def __call__(self, x: Float[Array, "B T H W C"], cache: Cache) -> tuple[Float[Array, "B T2 H2 W2 C2"], Cache]:
        return chain([*self.resnets, *self.upsamplers], x, cache)


class Encoder(nnx.Module):
    """Pixels to the channels of mean and log-variance; ``down_blocks`` is one flat list over all levels."""

    def __init__(self, config: VaeConfig, **numerics: Any) -> None:
        widths = [config.base_dim * multiple for multiple in config.dim_mult]
        self.conv_in = CausalConv((3, 3, 3), config.in_channels, config.base_dim, **numerics)
        blocks: list[CausalLayer] = []
        features = config.base_dim
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                blocks.append(ResidualBlock(features, width, **numerics))
                if 0.5**level in config.attn_scales:
                    blocks.append(AttentionBlock(width, **numerics))
                features = width
            if level + 1 < len(widths):
                blocks.append(Downsample(width, time=config.temporal_downsample[level], **numerics))
        self.down_blocks = nnx.List(blocks)
        self.mid_block = MidBlock(features, **numerics)
        self.norm_out = RmsNorm(features, param_dtype=numerics["param_dtype"])
        self.conv_out = CausalConv((3, 3, 3), features, 2 * config.z_dim, **numerics)

    def __call__(self, x: Float[Array, "B F H W P"], cache: Cache) -> tuple[Float[Array, "B T h w C2"], Cache]:
        return chain([self.conv_in, *self.down_blocks, self.mid_block, self.head], x, cache)

    def head(self, x: Float[Array, "B T h w D"], cache: Cache) -> tuple[Float[Array, "B T h w C2"], Cache]:
        """The last activation and convolution."""
        return self.conv_out.after_norm(self.norm_out, x, cache)


class Decoder(nnx.Module):
    """Latents to pixels. ``attn_scales`` concerns the encoder only (as in diffusers)."""

    def __init__(self, config: VaeConfig, **numerics: Any) -> None:
        base = config.decoder_base_dim or config.base_dim
        widths = [base * multiple for multiple in reversed(config.dim_mult)]
        doubles_time = config.temporal_downsample[::-1]
        self.conv_in = CausalConv((3, 3, 3), config.z_dim, widths[0], **numerics)
        self.mid_block = MidBlock(widths[0], **numerics)
        blocks = []
        features = widths[0]
        for level, width in enumerate(widths):
            upsample = [Upsample(width, time=time, **numerics) for time in doubles_time[level : level + 1]]
            blocks.append(UpBlock(features, width, config.num_res_blocks, upsample, **numerics))
            features = width // 2
        self.up_blocks = nnx.List(blocks)
        self.norm_out = RmsNorm(widths[-1], param_dtype=numerics["param_dtype"])
        self.conv_out = CausalConv((3, 3, 3), widths[-1], config.out_channels, **numerics)

    def __call__(self, x: Float[Array, "B T h w C"], cache: Cache) -> tuple[Float[Array, "B F H W P"], Cache]:
        return chain([self.conv_in, self.mid_block, *self.up_blocks, self.head], x, cache)

    def head(self, x: Float[Array, "B F H W D"], cache: Cache) -> tuple[Float[Array, "B F H W P"], Cache]:
        """The last activation and convolution."""
        return self.conv_out.after_norm(self.norm_out, x, cache)


class WanVae(ConfiguredModule):
    """The VAE; attribute paths are the published parameter names (``weight`` is ``kernel`` here).

    Args:
        config: Sizes.
        dtype: Compute dtype of convolutions and matrix products; norms and softmax always run in fp32.
        param_dtype: Dtype of the parameters; ``None`` means ``dtype``.
        precision: Precision of the products. ``None`` is the default of the hardware: in fp32 that is TF32
            on recent NVIDIA GPUs, which is also PyTorch's default for convolutions.
        rngs: Key stream ``params`` for the initial kernels.
    """

    def __init__(
        self,
        config: VaeConfig,
        *,
        dtype: DType = jnp.float32,
        param_dtype: DType | None = None,
        precision: jax.lax.Precision | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.dtype = dtype
        numerics = {"dtype": dtype, "param_dtype": param_dtype or dtype, "precision": precision, "rngs": rngs}
        self.encoder = Encoder(config, **numerics)
        self.quant_conv = Conv((), 2 * config.z_dim, 2 * config.z_dim, **numerics)
        self.post_quant_conv = Conv((), config.z_dim, config.z_dim, **numerics)
        self.decoder = Decoder(config, **numerics)

    def encode(
        self, video: Float[Array, "B F H W P"], slice_frames: int | None = None
    ) -> tuple[Float[Array, "B T h w C"], Float[Array, "B T h w C"]]:
        """Encodes a clip with values in [-1, 1]; H and W are multiples of 8.

        Frames beyond 4k + 1 are dropped, as in diffusers.

        Args:
            video: The clip.
            slice_frames: Latent frames per slice; ``None`` for the whole clip at once.

        Returns:
            Mean and log-variance (in [-30, 20]) of the raw latents in fp32, T = k + 1.

        Raises:
            ValueError: Wrong number of channels, no frame, or ``slice_frames`` below 1.
        """
        _require_channels(video, self.config.in_channels, "video")
        step = 2 ** sum(self.config.temporal_downsample)
        group = max(4, step)  # diffusers reads groups of 4 frames even if the network halves time only once
        kept = 1 + (video.shape[1] - 1) // group * group
        frames = None if slice_frames is None else slice_frames * step
        moments = in_slices(self.encoder, video[:, :kept].astype(self.dtype), frames)
        mean, logvar = jnp.split(self.quant_conv.over(moments).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Float[Array, "B T h w C"], slice_frames: int | None = None) -> Float[Array, "B F H W P"]:
        """Decodes raw latents to a clip with values in [-1, 1], F = 4 T - 3, in the compute dtype.

        Args:
            latents: Raw latents (``denormalize`` computes them from the diffusion model's).
            slice_frames: Latent frames per slice; ``None`` for the whole clip at once.

        Raises:
            ValueError: Wrong number of channels, no frame, or ``slice_frames`` below 1.
        """
        return jnp.clip(self.decode_unclipped(latents, slice_frames), -1.0, 1.0)

    def decode_unclipped(
        self, latents: Float[Array, "B T h w C"], slice_frames: int | None = None
    ) -> Float[Array, "B F H W P"]:
        """``decode`` without clipping values to [-1, 1], which would hide infinite ones."""
        _require_channels(latents, self.config.z_dim, "latents")
        features = self.post_quant_conv.over(latents.astype(self.dtype))
        return in_slices(self.decoder, features, slice_frames)


def in_slices(network: CausalLayer, x: Float[Array, "B T H W C"], frames: int | None) -> Float[Array, "B T2 H2 W2 C2"]:
    """Runs a causal network over a clip, ``frames`` at a time; ``None`` runs it over the whole clip at once.

    The first slice holds frame 0 and the remainder, at most ``frames`` in all; equal slices follow.

    Raises:
        ValueError: ``frames`` is below 1.
    """
    if frames is not None and frames < 1:
        raise ValueError(f"slices of {frames} frames; use at least 1, or None for the whole clip")
    b, t, *rest = x.shape
    head = t if frames is None else 1 + (t - 1) % frames
    y, cache = network(x[:, :head], None)
    if head == t:
        return y

    def step(cache: Cache, x: Float[Array, "B T H W C"]) -> tuple[Cache, Float[Array, "B T2 H2 W2 C2"]]:
        y, cache = network(x, cache)
        return cache, y

    slices = jnp.moveaxis(x[:, head:].reshape(b, -1, frames, *rest), 1, 0)
    _, tail = jax.lax.scan(step, cache, slices)
    return jnp.concatenate([y, jnp.moveaxis(tail, 0, 1).reshape(b, -1, *y.shape[2:])], 1)


def _require_channels(x: Float[Array, "B T H W C"], channels: int, name: str) -> None:
    if x.ndim != 5 or x.shape[1] == 0 or x.shape[-1] != channels:
        raise ValueError(
            f"{name} of shape {x.shape}; expected [batch, frames, height, width, {channels}], at least one frame"
        )


def normalize(config: VaeConfig, raw: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """Converts raw latents to those of the diffusion model, equation (1), in fp32."""
    mean, std = (jnp.array(values, jnp.float32) for values in (config.latents_mean, config.latents_std))
    return (raw.astype(jnp.float32) - mean) / std


def denormalize(config: VaeConfig, latents: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """Inverse of ``normalize``, in fp32."""
    mean, std = (jnp.array(values, jnp.float32) for values in (config.latents_mean, config.latents_std))
    return latents.astype(jnp.float32) * std + mean


def to_model_range(frames: UInt8[AnyArray, "*B"]) -> Float[Array, "*B"]:
    """0 ... 255 to [-1, 1], fp32, on the device; ``media.pixels.to_signed`` does the same on the host."""
    return jnp.asarray(frames).astype(jnp.float32) / 127.5 - 1


def to_uint8(video: Float[Array, "*B"]) -> UInt8[Array, "*B"]:
    """[-1, 1] to 0 ... 255, rounded to nearest (ties to even)."""
    unit = jnp.clip(video.astype(jnp.float32) / 2 + 0.5, 0.0, 1.0)
    return jnp.round(unit * 255.0).astype(jnp.uint8)


def decode_frames(
    vae: WanVae, latents: Float[Array, "B T h w C"], slice_frames: int | None = None
) -> UInt8[Array, "B F H W P"]:
    """Decodes latents of the diffusion model to pixels; ``slice_frames`` as in ``WanVae.decode``."""
    return to_uint8(vae.decode(denormalize(vae.config, latents), slice_frames))


@jax.jit
def reconstruct(vae: Network[WanVae], frames: UInt8[AnyArray, "B F H W 3"]) -> UInt8[Array, "B F H W 3"]:
    """Encodes clips and decodes the means of their posteriors."""
    mean, _ = vae.module.encode(to_model_range(frames))
    return to_uint8(vae.module.decode(mean))
