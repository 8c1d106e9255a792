"""Configuration of the video VAE."""

import dataclasses
from typing import Annotated, Any

from helios_jax.config.fields import Json, Range, SettingError, Width, check_fields, publish, read_fields, require

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
        # The factors are not independent settings: they follow from the levels.
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
