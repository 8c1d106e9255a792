"""Configuration of the transformer; one constructor per published size."""

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


def patch_tokens(config: TransformerConfig, frames: int, height: int, width: int) -> int:
    """Tokens of a latent clip of the given size under the current-stream patch."""
    return frames * height * width // math.prod(config.patch_size)
