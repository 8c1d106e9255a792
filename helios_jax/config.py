"""Configurations: one frozen dataclass per component, one constructor per published size.

Field names are ours; ``from_diffusers`` and ``to_diffusers`` translate the JSON files of the
published folder layout (diffusers 0.42.1). Keys that this library does not know are ignored on
reading only when diffusers itself gives them no effect on inference; a setting that would change
the result and is not supported raises ``ValueError``.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

Json = Mapping[str, Any]


def _require(json: Json, key: str, allowed: tuple[Any, ...], component: str) -> None:
    """Raises ValueError when ``json[key]`` is present with a value that we do not implement."""
    if key in json and json[key] not in allowed:
        wanted = " or ".join(repr(value) for value in allowed)
        raise ValueError(f"{component} config: {key}={json[key]!r} is not supported; expected {wanted}")


def _rename(json: Json, names: Mapping[str, str]) -> dict[str, Any]:
    """Picks ``names`` (published key -> field) out of ``json``; lists become tuples."""
    found = {field: json[key] for key, field in names.items() if key in json}
    return {field: tuple(value) if isinstance(value, list) else value for field, value in found.items()}


def _publish(config: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Inverse of ``_rename``: the published keys of ``config``; tuples become lists."""
    values = {key: getattr(config, field) for key, field in names.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


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
        guidance_cross_attn: Text attends to current tokens only; history passes through untouched.
        zero_history_timestep: History tokens are modulated with timestep 0.
        has_multi_term_memory_patch: The history patchers exist.
        is_amplify_history: Learned amplification of history keys (off in the released models).
        history_scale_mode: "per_head" or "scalar" amplification.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_heads: int = 40
    head_dim: int = 128
    in_channels: int = 16
    out_channels: int | None = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    eps: float = 1e-6
    rope_dim: tuple[int, int, int] = (44, 42, 42)
    rope_theta: float = 10000.0
    guidance_cross_attn: bool = True
    zero_history_timestep: bool = True
    has_multi_term_memory_patch: bool = True
    is_amplify_history: bool = False
    history_scale_mode: Literal["per_head", "scalar"] = "per_head"

    def __post_init__(self) -> None:
        if sum(self.rope_dim) != self.head_dim:
            raise ValueError(
                f"rope_dim {self.rope_dim} must sum to head_dim {self.head_dim}, it sums to {sum(self.rope_dim)}"
            )
        if any(n % 2 for n in self.rope_dim):
            raise ValueError(f"rope_dim {self.rope_dim}: every part must be even (channels rotate in pairs)")
        if self.history_scale_mode not in ("per_head", "scalar"):
            raise ValueError(f"history_scale_mode {self.history_scale_mode!r} must be 'per_head' or 'scalar'")

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
        """A model that runs in a blink on a CPU; for tests and the demo."""
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
        """Reads ``transformer/config.json``. Raises ValueError on settings that are not supported."""
        _require(json, "added_kv_proj_dim", (None,), "transformer")
        return cls(**_rename(json, _TRANSFORMER_KEYS))

    def to_diffusers(self) -> dict[str, Any]:
        """Writes ``transformer/config.json``."""
        return {
            "_class_name": "HeliosTransformer3DModel",
            **_publish(self, _TRANSFORMER_KEYS),
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

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    )
    latents_std: tuple[float, ...] = (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    )
    in_channels: int = 3
    out_channels: int = 3
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8

    def __post_init__(self) -> None:
        if len(self.latents_mean) != self.z_dim or len(self.latents_std) != self.z_dim:
            raise ValueError(
                f"latents_mean and latents_std need z_dim={self.z_dim} values, "
                f"got {len(self.latents_mean)} and {len(self.latents_std)}"
            )
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temporal_downsample needs one value per level but the last: {len(self.dim_mult) - 1}, "
                f"got {len(self.temporal_downsample)}"
            )

    @classmethod
    def wan_2_1(cls) -> "VaeConfig":
        """The published VAE: 126,892,531 parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> "VaeConfig":
        """A narrow VAE with the published geometry (4x time, 8x space)."""
        return cls(base_dim=8, num_res_blocks=1, dim_mult=(1, 2, 2, 2))

    @classmethod
    def from_diffusers(cls, json: Json) -> "VaeConfig":
        """Reads ``vae/config.json``. Raises ValueError on settings that are not supported."""
        _require(json, "is_residual", (False, None), "vae")
        _require(json, "patch_size", (None,), "vae")
        _require(json, "clip_output", (True, None), "vae")
        return cls(**_rename(json, _VAE_KEYS))

    def to_diffusers(self) -> dict[str, Any]:
        """Writes ``vae/config.json``."""
        return {"_class_name": "AutoencoderKLWan", **_publish(self, _VAE_KEYS)}


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

    vocab_size: int = 256384
    d_model: int = 4096
    num_layers: int = 24
    num_heads: int = 64
    d_kv: int = 64
    d_ff: int = 10240
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    pad_token_id: int = 0
    eos_token_id: int = 1

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
        _require(json, "feed_forward_proj", ("gated-gelu",), "text_encoder")
        return cls(**_rename(json, _TEXT_KEYS))

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
            **_publish(self, _TEXT_KEYS),
        }


Solver = Literal["unipc", "euler", "dmd"]

_SCHEDULER_KEYS = {
    "num_train_timesteps": "num_train_timesteps",
    "shift": "shift",
    "stages": "num_levels",
    "stage_range": "level_range",
    "gamma": "gamma",
    "solver_order": "solver_order",
    "solver_type": "solver_type",
    "lower_order_final": "lower_order_final",
    "disable_corrector": "disable_corrector",
    "use_dynamic_shifting": "use_dynamic_shifting",
    "time_shift_type": "time_shift_type",
    "base_image_seq_len": "base_seq_len",
    "max_image_seq_len": "max_seq_len",
    "base_shift": "base_shift",
    "max_shift": "max_shift",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Noise schedule and solver (``HeliosScheduler`` and ``HeliosDMDScheduler`` of diffusers).

    Attributes:
        solver: "unipc", "euler" or "dmd".
        num_train_timesteps: Length of the global timestep table.
        shift: Static shift of the global table; must be 1 with dynamic shifting.
        num_levels: Pyramid levels (1: single stage).
        level_range: Fractions of the global table at which levels begin and end, ``num_levels + 1`` values.
        gamma: Correlation of the block noise added between levels.
        solver_order: Order of UniPC, 1 or 2.
        solver_type: UniPC's B(h): "bh1" or "bh2".
        lower_order_final: UniPC falls to order 1 in the last step.
        disable_corrector: Steps whose UniPC corrector is skipped after them.
        use_dynamic_shifting: Shift sigmas by a token-count dependent mu.
        time_shift_type: "exponential" or "linear" dynamic shift.
        base_seq_len: Token count at which mu = ``base_shift``.
        max_seq_len: Token count at which mu = ``max_shift``.
        base_shift: See ``base_seq_len``.
        max_shift: See ``max_seq_len``.
        shift_after_upsampling: Compute a level's mu from its own token count, as the research code
            does; off: from the count before upsampling, as released inference does.
    """

    solver: Solver = "unipc"
    num_train_timesteps: int = 1000
    shift: float = 1.0
    num_levels: int = 3
    level_range: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)
    gamma: float = 1 / 3
    solver_order: int = 2
    solver_type: Literal["bh1", "bh2"] = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()
    use_dynamic_shifting: bool = False
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    base_seq_len: int = 256
    max_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15
    shift_after_upsampling: bool = False

    def __post_init__(self) -> None:
        if self.solver not in ("unipc", "euler", "dmd"):
            raise ValueError(f"solver {self.solver!r} must be 'unipc', 'euler' or 'dmd'")
        if len(self.level_range) != self.num_levels + 1:
            raise ValueError(f"level_range needs num_levels + 1 = {self.num_levels + 1} values, got {self.level_range}")
        if self.solver_order not in (1, 2):
            raise ValueError(f"solver_order {self.solver_order} must be 1 or 2")
        if self.use_dynamic_shifting and self.shift != 1.0:
            raise ValueError(f"dynamic shifting needs shift = 1.0, got {self.shift}")
        if self.time_shift_type not in ("exponential", "linear"):
            raise ValueError(f"time_shift_type {self.time_shift_type!r} must be 'exponential' or 'linear'")
        if not 0 < self.gamma <= 1 / 3 + 1e-9:
            raise ValueError(f"gamma {self.gamma} must lie in (0, 1/3]: beyond it the block noise has no covariance")

    @classmethod
    def base(cls) -> "SchedulerConfig":
        """Helios-Base: one stage, UniPC, exponential shift."""
        return cls(num_levels=1, level_range=(0.0, 1.0), use_dynamic_shifting=True)

    @classmethod
    def mid(cls) -> "SchedulerConfig":
        """Helios-Mid: three levels, UniPC, exponential shift."""
        return cls(use_dynamic_shifting=True)

    @classmethod
    def distilled(cls) -> "SchedulerConfig":
        """Helios-Distilled: three levels, DMD steps, linear shift."""
        return cls(solver="dmd", use_dynamic_shifting=True, time_shift_type="linear")

    @classmethod
    def from_diffusers(cls, json: Json) -> "SchedulerConfig":
        """Reads ``scheduler/scheduler_config.json``.

        Raises:
            ValueError: The scheduler class or one of its settings is not supported.
        """
        name = json.get("_class_name", "HeliosScheduler")
        defaults: dict[str, Any] = {}
        if name == "HeliosDMDScheduler":
            solver = "dmd"
            defaults["time_shift_type"] = "linear"
        elif name == "HeliosScheduler":
            solver = json.get("scheduler_type", "unipc")
        else:
            raise ValueError(
                f"unknown scheduler {name!r}; supported: 'HeliosScheduler' (UniPC, Euler), 'HeliosDMDScheduler'"
            )
        _require(json, "prediction_type", ("flow_prediction",), "scheduler")
        _require(json, "predict_x0", (True,), "scheduler")
        _require(json, "thresholding", (False,), "scheduler")
        _require(json, "use_flow_sigmas", (True,), "scheduler")
        _require(json, "solver_p", (None,), "scheduler")
        values = {**defaults, **_rename(json, _SCHEDULER_KEYS), "solver": solver}
        if "level_range" in values:  # JSON files write its ends as 0 and 1
            values["level_range"] = tuple(map(float, values["level_range"]))
        if values.get("solver_type") in ("midpoint", "heun", "logrho"):  # diffusers maps these to bh2
            values["solver_type"] = "bh2"
        return cls(**values)

    def to_diffusers(self) -> dict[str, Any]:
        """Writes ``scheduler/scheduler_config.json``."""
        name = "HeliosDMDScheduler" if self.solver == "dmd" else "HeliosScheduler"
        return {
            "_class_name": name,
            "scheduler_type": self.solver,
            "prediction_type": "flow_prediction",
            "predict_x0": True,
            "thresholding": False,
            "use_flow_sigmas": True,
            **_publish(self, _SCHEDULER_KEYS),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """Geometry of the context (arXiv 2603.04379; inference conventions of diffusers 0.42.1).

    Attributes:
        sizes: Latent frames in the (long, mid, short) tiers, oldest first.
        chunk_frames: Latent frames generated per chunk.
        keep_first_frame: Prepend the anchor, the first frame of the video, to the short tier. Off: the
            short tier has one more recent frame instead.
    """

    sizes: tuple[int, int, int] = (16, 2, 1)
    chunk_frames: int = 9
    keep_first_frame: bool = True

    @property
    def tier_sizes(self) -> tuple[int, int, int]:
        """Frames read from the buffer by the (long, mid, short) tiers."""
        long, mid, short = self.sizes
        return long, mid, short if self.keep_first_frame else short + 1

    @property
    def buffer_frames(self) -> int:
        """Latent frames that the history buffer holds."""
        return sum(self.tier_sizes)

    @property
    def frame_indices(self) -> tuple[tuple[int, ...], ...]:
        """Relative frame indices of the (long, mid, short, current) streams; equal for every chunk."""
        start = 1 if self.keep_first_frame else 0
        bounds = [start]
        for size in (*self.tier_sizes, self.chunk_frames):
            bounds.append(bounds[-1] + size)
        long, mid, short, current = (tuple(range(low, high)) for low, high in itertools.pairwise(bounds))
        return long, mid, (0, *short) if self.keep_first_frame else short, current


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What ``model_index.json`` says about sampling.

    Attributes:
        is_distilled: Few-step model: guidance defaults to 1 and the first chunk may be amplified.
        is_cfg_zero_star: CFG-Zero* in place of plain guidance.
        is_pyramid: Pyramid pipeline (integer timesteps, levels) rather than single stage.
    """

    is_distilled: bool = False
    is_cfg_zero_star: bool = False
    is_pyramid: bool = True

    @classmethod
    def from_diffusers(cls, json: Json) -> "PipelineConfig":
        """Reads ``model_index.json``. Raises ValueError for a pipeline class that is not Helios."""
        name = json.get("_class_name")
        if name not in ("HeliosPipeline", "HeliosPyramidPipeline"):
            raise ValueError(
                f"model_index.json names the pipeline {name!r}; expected 'HeliosPipeline' or 'HeliosPyramidPipeline'"
            )
        return cls(
            is_distilled=bool(json.get("is_distilled", False)),
            is_cfg_zero_star=bool(json.get("is_cfg_zero_star", False)),
            is_pyramid=name == "HeliosPyramidPipeline",
        )

    def to_diffusers(self, scheduler: SchedulerConfig) -> dict[str, Any]:
        """Writes ``model_index.json``."""
        index: dict[str, Any] = {
            "_class_name": "HeliosPyramidPipeline" if self.is_pyramid else "HeliosPipeline",
            "scheduler": ["diffusers", scheduler.to_diffusers()["_class_name"]],
            "text_encoder": ["transformers", "UMT5EncoderModel"],
            "tokenizer": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "HeliosTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLWan"],
        }
        if self.is_pyramid:
            index |= {"is_cfg_zero_star": self.is_cfg_zero_star, "is_distilled": self.is_distilled}
        return index


def patch_tokens(config: TransformerConfig, frames: int, height: int, width: int) -> int:
    """Tokens of a latent clip of the given size under the current-stream patch."""
    return frames * height * width // math.prod(config.patch_size)
