"""Configurations of the networks; one constructor per published size."""

import dataclasses
import math
from typing import Annotated, Any, Literal

from helios_jax.config.fields import (
    Depth,
    Epsilon,
    Json,
    Range,
    SettingError,
    Width,
    check_fields,
    publish,
    read_fields,
    require,
)

Patch = Annotated[int, Range(1, 64)]
"""Positions of a patch along one axis."""

_TRANSFORMER_KEYS = {
    "patch_size": "patch_size",
    "num_attention_heads": "num_heads",
    "attention_head_dim": "head_dim",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "text_dim": "text_dim",
    "freq_dim": "freq_dim",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "cross_attn_norm": "cross_attn_norm",
    "eps": "eps",
    "rope_dim": "rope_dim",
    "rope_theta": "rope_theta",
    "guidance_cross_attn": "guidance_cross_attn",
    "zero_history_timestep": "zero_history_timestep",
    "has_multi_term_memory_patch": "has_multi_term_memory_patch",
    "is_amplify_history": "is_amplify_history",
    "history_scale_mode": "history_scale_mode",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The DiT (``HeliosTransformer3DModel`` of diffusers; a Wan2.1 backbone with tiered history).

    Attributes:
        patch_size: Patch of the current and short streams, (frames, rows, columns); the mid and long
            history tiers use twice and four times this patch.
        num_heads: Attention heads N.
        head_dim: Head dimension K; the model dimension is D = N K.
        in_channels: Latent channels C.
        out_channels: Channels of the predicted velocity; ``None`` means ``in_channels``.
        text_dim: Width of the text encoder's output.
        freq_dim: Width of the sinusoidal timestep features.
        ffn_dim: Hidden width of the feed-forward layers.
        num_layers: Blocks L.
        cross_attn_norm: Affine LayerNorm before cross-attention (off: identity).
        eps: Epsilon of every norm.
        rope_dim: Channels of one head rotated by frame, row and column; they sum to ``head_dim``.
        rope_theta: Base of the rotary frequencies.
        guidance_cross_attn: Only current tokens attend to the text; history tokens skip cross-attention.
        zero_history_timestep: History tokens are modulated with timestep 0.
        has_multi_term_memory_patch: The history patchers exist.
        is_amplify_history: Learned amplification of history keys (off in the released models).
        history_scale_mode: "per_head" or "scalar" amplification.
    """

    patch_size: tuple[Patch, Patch, Patch] = (1, 2, 2)
    num_heads: Width = 40
    head_dim: Width = 128
    in_channels: Width = 16
    out_channels: Width | None = 16
    text_dim: Width = 4096
    freq_dim: Width = 256
    ffn_dim: Width = 13824
    num_layers: Depth = 40
    cross_attn_norm: bool = True
    eps: Epsilon = 1e-6
    rope_dim: tuple[Width, Width, Width] = (44, 42, 42)
    rope_theta: Annotated[float, Range(1.0, 1e9)] = 10000.0
    guidance_cross_attn: bool = True
    zero_history_timestep: bool = True
    has_multi_term_memory_patch: bool = True
    is_amplify_history: bool = False
    history_scale_mode: Literal["per_head", "scalar"] = "per_head"

    def __post_init__(self) -> None:
        check_fields(self)
        if sum(self.rope_dim) != self.head_dim or any(n % 2 for n in self.rope_dim):
            raise SettingError(
                "rope_dim",
                self.rope_dim,
                f"three even numbers (channels rotate in pairs) that sum to the {self.head_dim} channels of a head",
            )
        if self.freq_dim % 2:
            raise SettingError("freq_dim", self.freq_dim, "an even number: half are cosines, half are sines")

    @property
    def dim(self) -> int:
        """Model dimension D."""
        return self.num_heads * self.head_dim

    @property
    def velocity_channels(self) -> int:
        """Channels of the predicted velocity."""
        return self.out_channels or self.in_channels

    @classmethod
    def helios_14b(cls) -> "TransformerConfig":
        """The published model: 14,312,427,584 parameters."""
        return cls()

    @classmethod
    def wan_1_3b(cls) -> "TransformerConfig":
        """Helios on the Wan2.1-1.3B backbone, for experiments on small machines."""
        return cls(num_heads=12, ffn_dim=8960, num_layers=30)

    @classmethod
    def tiny(cls) -> "TransformerConfig":
        """A model small enough for a CPU, for tests and the demo."""
        return cls(
            num_heads=2,
            head_dim=32,
            text_dim=32,
            freq_dim=32,
            ffn_dim=128,
            num_layers=2,
            rope_dim=(12, 10, 10),
        )

    @classmethod
    def from_diffusers(cls, json: Json) -> "TransformerConfig":
        """Reads ``transformer/config.json``. Raises SettingError on settings that are not supported."""
        require(json, "_class_name", "HeliosTransformer3DModel")
        for unsupported in ("added_kv_proj_dim", "image_dim", "pos_embed_seq_len"):  # of Wan's I2V transformers
            require(json, unsupported, None)
        require(json, "qk_norm", "rms_norm_across_heads")
        require(json, "restrict_self_attn", False)  # a variant of the research code
        return read_fields(cls, json, _TRANSFORMER_KEYS)

    def to_diffusers(self) -> dict[str, Any]:
        """Writes ``transformer/config.json``."""
        return {
            "_class_name": "HeliosTransformer3DModel",
            **publish(self, _TRANSFORMER_KEYS),
            "qk_norm": "rms_norm_across_heads",
            "added_kv_proj_dim": None,
        }


_VAE_KEYS = {
    "base_dim": "base_dim",
    "decoder_base_dim": "decoder_base_dim",
    "z_dim": "z_dim",
    "dim_mult": "dim_mult",
    "num_res_blocks": "num_res_blocks",
    "attn_scales": "attn_scales",
    "temperal_downsample": "temporal_downsample",
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "scale_factor_temporal": "scale_factor_temporal",
    "scale_factor_spatial": "scale_factor_spatial",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """The causal video VAE of Wan2.1 (``AutoencoderKLWan`` of diffusers).

    Attributes:
        base_dim: Channels of the encoder's first level.
        decoder_base_dim: Channels of the decoder's last level; ``None`` means ``base_dim``.
        z_dim: Latent channels C.
        dim_mult: Channel multiplier of each level.
        num_res_blocks: Residual blocks per encoder level; the decoder has one more.
        attn_scales: Spatial scales with extra attention (empty in the published model).
        temporal_downsample: Which of the down-sampling steps also halve time.
        latents_mean: Per-channel mean of raw latents; model space is (raw - mean) / std.
        latents_std: Per-channel standard deviation of raw latents.
        in_channels: Pixel channels in.
        out_channels: Pixel channels out.
        scale_factor_temporal: Pixel frames per latent frame after the first.
        scale_factor_spatial: Pixels per latent position, each side.
    """

    base_dim: Width = 96
    decoder_base_dim: Width | None = None
    z_dim: Width = 16
    dim_mult: tuple[Annotated[int, Range(1, 64)], ...] = (1, 2, 4, 4)
    num_res_blocks: Annotated[int, Range(1, 16)] = 2
    attn_scales: tuple[Annotated[float, Range(0.0, 1.0)], ...] = ()
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[Annotated[float, Range(-1e4, 1e4)], ...] = (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    )
    latents_std: tuple[Annotated[float, Range(1e-4, 1e4)], ...] = (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    )
    in_channels: Width = 3
    out_channels: Width = 3
    scale_factor_temporal: Width = 4
    scale_factor_spatial: Width = 8

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise SettingError(name, getattr(self, name), f"{self.z_dim} numbers, one per latent channel (z_dim)")
        if not 1 <= len(self.dim_mult) <= 8:
            raise SettingError("dim_mult", self.dim_mult, "1 to 8 numbers, one per level")
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            levels = len(self.dim_mult) - 1
            raise SettingError(
                "temporal_downsample", self.temporal_downsample, f"{levels} values, one per level but the last"
            )
        # The factors are not free: they say what the levels do.
        for name, steps in (
            ("scale_factor_spatial", len(self.dim_mult) - 1),
            ("scale_factor_temporal", sum(self.temporal_downsample)),
        ):
            if getattr(self, name) != 2**steps:
                halvings = f"{2**steps}: the levels of this VAE halve {steps} time(s)"
                raise SettingError(name, getattr(self, name), halvings)

    @classmethod
    def wan_2_1(cls) -> "VaeConfig":
        """The published VAE: 126,892,531 parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> "VaeConfig":
        """A narrow VAE with the published geometry (4x time, 8x space)."""
        return cls(base_dim=8, num_res_blocks=1, dim_mult=(1, 2, 2, 2))

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames of a clip of latent frames: the first is one frame, each later one ``scale_factor_temporal``."""
        return (latent_frames - 1) * self.scale_factor_temporal + 1

    def whole_frames(self, pixel_frames: int) -> int:
        """The longest clip of at most ``pixel_frames`` frames that is a whole number of latent frames: 4k + 1."""
        return self.pixel_frames((pixel_frames - 1) // self.scale_factor_temporal + 1)

    @classmethod
    def from_diffusers(cls, json: Json) -> "VaeConfig":
        """Reads ``vae/config.json``. Raises SettingError on settings that are not supported."""
        require(json, "_class_name", "AutoencoderKLWan")
        require(json, "is_residual", False, None)
        require(json, "patch_size", None)
        require(json, "clip_output", True, None)
        return read_fields(cls, json, _VAE_KEYS)

    def to_diffusers(self) -> dict[str, Any]:
        """Writes ``vae/config.json``."""
        return {"_class_name": "AutoencoderKLWan", **publish(self, _VAE_KEYS)}


_TEXT_KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "d_kv": "d_kv",
    "d_ff": "d_ff",
    "relative_attention_num_buckets": "num_buckets",
    "relative_attention_max_distance": "max_distance",
    "layer_norm_epsilon": "eps",
    "pad_token_id": "pad_token_id",
    "eos_token_id": "eos_token_id",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """The UMT5 encoder (``UMT5EncoderModel`` of transformers).

    Attributes:
        vocab_size: Rows of the embedding table.
        d_model: Width of the residual stream.
        num_layers: Blocks.
        num_heads: Attention heads N.
        d_kv: Head dimension K (N K need not equal ``d_model``).
        d_ff: Hidden width of the gated feed-forward layers.
        num_buckets: Buckets of the relative position bias, one table per block.
        max_distance: Offset from which the last bucket is used.
        eps: Epsilon of the RMS norms.
        pad_token_id: Token used for padding.
        eos_token_id: Token appended to every prompt.
    """

    vocab_size: Annotated[int, Range(1, 2**24)] = 256384
    d_model: Width = 4096
    num_layers: Depth = 24
    num_heads: Width = 64
    d_kv: Width = 64
    d_ff: Width = 10240
    num_buckets: Annotated[int, Range(4, 4096)] = 32
    max_distance: Width = 128
    eps: Epsilon = 1e-6
    pad_token_id: Annotated[int, Range(0, 2**24)] = 0
    eos_token_id: Annotated[int, Range(0, 2**24)] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("pad_token_id", "eos_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise SettingError(
                    name, getattr(self, name), f"the number of one of the {self.vocab_size} tokens (vocab_size)"
                )
        if self.max_distance <= self.num_buckets // 4:
            expected = f"more than {self.num_buckets // 4}, the distances that have a bucket of their own"
            raise SettingError("max_distance", self.max_distance, expected)

    @classmethod
    def umt5_xxl(cls) -> "TextEncoderConfig":
        """The published encoder: 5,680,910,336 parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> "TextEncoderConfig":
        """A small encoder for tests and the demo."""
        return cls(vocab_size=512, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=64)

    @classmethod
    def from_diffusers(cls, json: Json) -> "TextEncoderConfig":
        """Reads ``text_encoder/config.json`` (a transformers file)."""
        require(json, "model_type", "umt5")
        require(json, "architectures", ["UMT5EncoderModel"], ["UMT5Model"], ["UMT5ForConditionalGeneration"], None)
        require(json, "feed_forward_proj", "gated-gelu")
        require(json, "is_gated_act", True)
        require(json, "dense_act_fn", "gelu_new")
        require(json, "is_decoder", False)
        return read_fields(cls, json, _TEXT_KEYS)

    def to_diffusers(self) -> dict[str, Any]:
        """Writes ``text_encoder/config.json``."""
        return {
            "architectures": ["UMT5EncoderModel"],
            "model_type": "umt5",
            "feed_forward_proj": "gated-gelu",
            "is_gated_act": True,
            "dense_act_fn": "gelu_new",
            "is_encoder_decoder": False,
            "use_cache": False,
            "tie_word_embeddings": False,
            **publish(self, _TEXT_KEYS),
        }


def patch_tokens(config: TransformerConfig, frames: int, height: int, width: int) -> int:
    """Tokens of a latent clip of the given size under the current-stream patch."""
    return frames * height * width // math.prod(config.patch_size)
