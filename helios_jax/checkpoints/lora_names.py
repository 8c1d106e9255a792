"""The names that LoRA files give to tensors: which layer of the transformer, and which part of its update.

A name is parsed from both ends. It may begin with wrapper prefixes such as "diffusion_model." or "base_model.model.",
and it ends with the part of the update, such as ".lora_down.weight". Between them is the layer's name in diffusers or
Wan2.1. Kohya's trainers write the layer with "_" for every ".". Names are compared in that form, so one pattern per
layer covers both separators.
"""

import dataclasses
import re

_WRAPPERS = r"(?:(?:base_model|model|diffusion_model|transformer|unet|net|module|pipe|dit)\.)*"
_FLAT_WRAPPERS = r"(?:lora_unet_+|lora_transformer_+|lycoris_+)?"
"""The prefix of a layer written with underscores; Wan-Fun has two after "unet"."""

_ADAPTER = r"(?:\.[^.]+)?"
"""PEFT puts the adapter's name, often "default", between the factor and "weight"."""

_ROLES = {
    "down": rf"(?:\.lora)?\.lora_(?:A|down)(?:{_ADAPTER}\.weight)?|[._]lora\.down\.weight",
    "up": rf"(?:\.lora)?\.lora_(?:B|up)(?:{_ADAPTER}\.weight)?|[._]lora\.up\.weight",
    "up_bias": rf"\.lora_(?:B|up){_ADAPTER}\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.diff|\.w_norm",
    "diff_b": r"\.diff_b|\.b_norm",
    "diff_m": r"\.diff_m",
}
"""Part of an update -> pattern of the end of its tensor's name."""

_OTHER_METHODS = {
    "DoRA": r"\.dora_scale|\.lora_magnitude_vector.*",
    "LoHa": r"\.hada_.+",
    "LoKr": r"\.lokr_.+",
    "Tucker-decomposed LoRA": r"\.lora_mid\.weight",
    "OFT": r"\.oft_.+",
    "replaced weights": r"\.(?:set_weight|reshape_weight)|\.modules_to_save\..+",
}
"""Methods whose tensors cannot be added as low-rank or dense updates -> pattern of the end of a tensor's name."""

_SKIPPED = {
    "a text encoder": r"(?:lora_te\d*_|lora_clip_|text_encoders?(?:_\d)?\.|te\d?\.|clip_[lgh]\.|cond_stage_model\.).*",
    "a second transformer": r"transformer_2\..*",
}
"""Networks that the file also updates and this model does not have -> pattern of a tensor's whole name."""

IMAGE_LAYERS = "layers for image conditioning"

_IMAGE_LAYERS = (
    r"blocks_\d+_(?:cross_attn|attn2)_(?:k_img|v_img|norm_k_img|add_[kqv]_proj|norm_added_[kq]|to_add_out)",
    r"img_emb_.+",
    r"condition_embedder_image_embedder_.+",
    r"ref_conv",
)
"""Layers that read an image in Wan2.1's image-to-video models. Helios has none: its images are part of the history."""

_LAYERS = (
    (r"patch_(embedding|short|mid|long)", r"patch_\1"),
    (r"blocks_(\d+)", r"blocks.\1"),
    (r"blocks_(\d+)_self_attn_([qkv])", r"blocks.\1.attn1.to_\2"),
    (r"blocks_(\d+)_self_attn_o", r"blocks.\1.attn1.to_out.0"),
    (r"blocks_(\d+)_self_attn_norm_([qk])", r"blocks.\1.attn1.norm_\2"),
    (r"blocks_(\d+)_cross_attn_([qkv])", r"blocks.\1.attn2.to_\2"),
    (r"blocks_(\d+)_cross_attn_o", r"blocks.\1.attn2.to_out.0"),
    (r"blocks_(\d+)_cross_attn_norm_([qk])", r"blocks.\1.attn2.norm_\2"),
    (r"blocks_(\d+)_attn([12])_(?:processor_)?to_([qkv])", r"blocks.\1.attn\2.to_\3"),
    (r"blocks_(\d+)_attn([12])_(?:processor_)?to_out(?:_0)?", r"blocks.\1.attn\2.to_out.0"),
    (r"blocks_(\d+)_attn([12])_norm_([qk])", r"blocks.\1.attn\2.norm_\3"),
    (r"blocks_(\d+)_ffn_(?:0|net_0_proj)", r"blocks.\1.ffn.net.0.proj"),
    (r"blocks_(\d+)_ffn_(?:2|net_2)", r"blocks.\1.ffn.net.2"),
    (r"blocks_(\d+)_norm[23]", r"blocks.\1.norm2"),
    (r"blocks_(\d+)_(?:modulation|scale_shift_table)", r"blocks.\1.scale_shift_table"),
    (r"(time|text)_embedding_0", r"condition_embedder.\1_embedder.linear_1"),
    (r"(time|text)_embedding_2", r"condition_embedder.\1_embedder.linear_2"),
    (r"condition_embedder_(time|text)_embedder_linear_([12])", r"condition_embedder.\1_embedder.linear_\2"),
    (r"(?:time_projection_1|condition_embedder_time_proj)", r"condition_embedder.time_proj"),
    (r"(?:head_head|proj_out)", r"proj_out"),
    (r"(?:head|norm_out)", r"norm_out"),
    (r"(?:head_modulation|norm_out_scale_shift_table)", r"norm_out.scale_shift_table"),
)
"""Patterns of a layer's names in Wan2.1 and in diffusers, with "_" for "." -> its published name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraName:
    """The parts of a tensor's name.

    Attributes:
        layer: The layer's name in the file, without wrappers.
        role: The part of the update: "down" (A), "up" (B), "up_bias", "alpha", "diff", "diff_b" or "diff_m".
    """

    layer: str
    role: str


def parse_name(name: str) -> LoraName | None:
    """Layer and role of a tensor, or ``None`` if its name does not end like that of a LoRA tensor."""
    for role, pattern in _ROLES.items():
        if match := re.fullmatch(f"(.+?)(?:{pattern})", name):
            return LoraName(layer=re.sub(f"^{_WRAPPERS}", "", match[1]), role=role)
    return None


def skipped_part(name: str) -> str | None:
    """The network or layers that a tensor updates and that this model does not need; ``None`` for other tensors."""
    for part, pattern in _SKIPPED.items():
        if re.fullmatch(pattern, re.sub(r"^(?:(?:base_model|model)\.)*", "", name)):
            return part
    flat = _flat(re.sub(f"^{_WRAPPERS}", "", name))
    return IMAGE_LAYERS if any(re.match(f"(?:{p})_", flat) for p in _IMAGE_LAYERS) else None


def other_method(name: str) -> str | None:
    """The method that a tensor belongs to, if it is not LoRA."""
    for method, pattern in _OTHER_METHODS.items():
        if re.fullmatch(f".+(?:{pattern})", name):
            return method
    return None


def published_parameters(layer: str) -> tuple[str, str, str]:
    """Published names of a layer's weight, bias and modulation table.

    Unknown layers keep their own name, which is then reported as missing in the transformer.
    """
    published = layer
    for pattern, name in _LAYERS:
        if match := re.fullmatch(pattern, _flat(layer)):
            published = match.expand(name)
            break
    # A modulation table is itself a parameter, where other layers have a weight and a bias.
    if published.endswith("scale_shift_table"):
        return published, f"{published}.bias", published
    return f"{published}.weight", f"{published}.bias", f"{published}.scale_shift_table"


def _flat(layer: str) -> str:
    return re.sub(f"^{_FLAT_WRAPPERS}", "", layer.replace(".", "_"))
