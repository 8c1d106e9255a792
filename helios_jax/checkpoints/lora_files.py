"""LoRA files: the updates that they hold for the transformer, under any of the usual names.

Supported names, each with or without a leading "transformer.", "diffusion_model.", "base_model.model.":

    blocks.0.attn1.to_q.lora_A.weight, .lora_B.weight, .lora_B.bias      diffusers and PEFT
    blocks.0.attn1.to_q.lora_A.default.weight                            the same with an adapter's name
    blocks.0.self_attn.q.lora_down.weight, .lora_up.weight, .alpha       the names of Wan2.1
    lora_unet_blocks_0_self_attn_q.lora_down.weight, ...                 Kohya's trainers

A file may hold low-rank updates, dense ones (".diff" of weights, ".diff_b" of biases), or both. alpha is taken from the
layer's ".alpha" tensor, otherwise from the file's header (diffusers) or the ``adapter_config.json`` in the same folder
(PEFT); without any of these it is the rank.
"""

import collections
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from helios_jax.checkpoints.components import raise_problems, read_json
from helios_jax.checkpoints.tensor_files import TensorFolder
from helios_jax.typing import Path

_PREFIXES = r"(?:(?:base_model|model|diffusion_model|transformer)\.)*"

_ROLES = {
    "down": r"(.+)\.lora_(?:A|down)(?:\.[^.]+)?\.weight",
    "up": r"(.+)\.lora_(?:B|up)(?:\.[^.]+)?\.weight",
    "up_bias": r"(.+)\.lora_(?:B|up)(?:\.[^.]+)?\.bias",
    "alpha": r"(.+)\.alpha",
    "diff": r"(.+)\.diff",
    "diff_b": r"(.+)\.diff_b",
}
"""Role of a tensor in its layer -> pattern of its name; the group captures the layer's name."""

_WAN_NAMES = (
    (r"(patch_[a-z]+)", r"\1"),
    (r"blocks\.(\d+)\.self_attn\.([qkv])", r"blocks.\1.attn1.to_\2"),
    (r"blocks\.(\d+)\.self_attn\.o", r"blocks.\1.attn1.to_out.0"),
    (r"blocks\.(\d+)\.self_attn\.norm_([qk])", r"blocks.\1.attn1.norm_\2"),
    (r"blocks\.(\d+)\.cross_attn\.([qkv])", r"blocks.\1.attn2.to_\2"),
    (r"blocks\.(\d+)\.cross_attn\.o", r"blocks.\1.attn2.to_out.0"),
    (r"blocks\.(\d+)\.cross_attn\.norm_([qk])", r"blocks.\1.attn2.norm_\2"),
    (r"blocks\.(\d+)\.ffn\.0", r"blocks.\1.ffn.net.0.proj"),
    (r"blocks\.(\d+)\.ffn\.2", r"blocks.\1.ffn.net.2"),
    (r"blocks\.(\d+)\.norm3", r"blocks.\1.norm2"),
    (r"blocks\.(\d+)\.modulation", r"blocks.\1.scale_shift_table"),
    (r"(time|text)_embedding\.0", r"condition_embedder.\1_embedder.linear_1"),
    (r"(time|text)_embedding\.2", r"condition_embedder.\1_embedder.linear_2"),
    (r"time_projection\.1", r"condition_embedder.time_proj"),
    (r"head\.head", r"proj_out"),
    (r"head\.modulation", r"norm_out.scale_shift_table"),
)
"""Patterns of Wan2.1's layer names -> names in diffusers. Kohya's names are Wan's with "_" instead of "."."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoraDelta:
    """The update of one published tensor, in its published layout.

    Attributes:
        layer: The layer's name as it is in the file, for errors.
        factors: (B, A) of a low-rank update, or (dW,) of a dense one; see ``lora_merge``.
        weight: Factor of the update: alpha / rank; 1 for a dense one.
    """

    layer: str
    factors: tuple[np.ndarray, ...]
    weight: float

    @property
    def rank(self) -> int | None:
        """Rank of the update; ``None`` for a dense one."""
        return self.factors[1].shape[0] if len(self.factors) == 2 else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that is updated."""
        up, *down = self.factors
        return (up.shape[0], *down[0].shape[1:]) if down else up.shape


def read_lora(path: Path) -> dict[str, LoraDelta]:
    """Reads a LoRA file with any of the names above.

    Args:
        path: A safetensors file, or a folder that contains one (as ``save_lora_weights`` of diffusers writes it).

    Returns:
        Published tensor name, such as "blocks.0.attn1.to_q.weight", -> its update.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Several files in a folder; DoRA; names that are not understood; layers with one factor only,
            or whose factors do not fit each other (all listed).
    """
    path = _lora_file(pathlib.Path(path))
    with TensorFolder(path) as files:
        settings = _adapter_settings(files.metadata, path.parent)
        layers = _sort_by_layer(path, files)
    deltas: dict[str, LoraDelta] = {}
    problems = collections.defaultdict(list)
    for layer, parts in layers.items():
        published = _published_layer(layer)
        for parameter, update in _updates(published, parts, settings).items():
            # A modulation table is itself a parameter, where other layers have a weight and a bias.
            name = published if published.endswith("scale_shift_table") else f"{published}.{parameter}"
            if isinstance(update, str):
                problems["incomplete or inconsistent"].append(f"{layer} ({update})")
            elif name in deltas:
                problems["given twice"].append(f"{name} ({deltas[name].layer}, {layer})")
            else:
                factors, weight = update
                deltas[name] = LoraDelta(layer=layer, factors=factors, weight=weight)
    raise_problems(f"{path} is not a usable LoRA file:", problems)
    return deltas


def _lora_file(path: pathlib.Path) -> pathlib.Path:
    """The file itself, or the only safetensors file in a folder."""
    if path.is_file():
        return path
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no LoRA file {path}: a safetensors file, or a folder that holds one, is needed")
    if len(files) > 1:
        raise ValueError(f"{path} holds several files, name one of them: {', '.join(file.name for file in files)}")
    return files[0]


Parts = dict[str, np.ndarray]
"""The tensors of one layer by role."""


def _sort_by_layer(path: pathlib.Path, files: TensorFolder) -> dict[str, Parts]:
    """All tensors of a file, as layer (without the prefix of its namespace) -> role -> tensor."""
    problems = collections.defaultdict(list)
    layers: dict[str, Parts] = collections.defaultdict(dict)
    for name in files.tensors:
        found = [(role, match[1]) for role, pattern in _ROLES.items() if (match := re.fullmatch(pattern, name))]
        if "dora_scale" in name or "lora_magnitude_vector" in name:
            problems["of DoRA, which cannot be merged as LoRA"].append(name)
        elif not found:
            problems["with names that are not understood"].append(name)
        else:
            [(role, layer)] = found  # the patterns end differently: a name matches one of them at most
            layer = re.sub(f"^{_PREFIXES}", "", layer)
            if role in layers[layer]:
                problems["given twice"].append(name)
            layers[layer][role] = files.read(name)
    raise_problems(f"{path} is not a usable LoRA file; tensors:", problems)
    return layers


def _published_layer(layer: str) -> str:
    """A layer's name in diffusers; unknown names are returned unchanged."""
    # Kohya replaces every "." by "_". No rule undoes that, since names such as "self_attn" have underscores of their
    # own: the patterns of the table are translated instead.
    kohya = layer.startswith("lora_unet_")
    for pattern, published in _WAN_NAMES:
        if kohya:
            pattern = "lora_unet_" + pattern.replace(r"\.", "_")
        if re.fullmatch(pattern, layer):
            return re.sub(f"^{pattern}$", published, layer)
    return layer


Update = tuple[tuple[np.ndarray, ...], float]


def _updates(layer: str, parts: Parts, settings: Mapping[str, Any]) -> dict[str, Update | str]:
    """Updates of a layer's "weight" and "bias": factors and their weight, or a description of the problem."""
    updates: dict[str, Update | str] = {}
    # The bias that belongs to B is scaled like the product B A; dense updates are not scaled at all.
    weight = 1.0
    if parts.keys() & {"down", "up", "up_bias", "alpha"}:
        if not {"down", "up"} <= parts.keys():
            return {"weight": f"{' and '.join(parts)} given; A (lora_down) and B (lora_up) needed"}
        up, down = parts["up"], parts["down"]
        if up.size != up.shape[0] * down.shape[0]:
            return {"weight": f"B {up.shape} and A {down.shape} do not have one rank"}
        weight = _alpha_over_rank(layer, parts, settings)
        updates["weight"] = (up, down), weight
    for role, parameter, factor in (("diff", "weight", 1.0), ("diff_b", "bias", 1.0), ("up_bias", "bias", weight)):
        if role in parts:
            twice = f"its {parameter} is updated twice"
            updates[parameter] = twice if parameter in updates else ((parts[role],), factor)
    return updates


def _alpha_over_rank(layer: str, parts: Parts, settings: Mapping[str, Any]) -> float:
    # The layer's own tensor takes precedence over the settings of the whole file.
    rank = parts["down"].shape[0]
    if "alpha" in parts:
        return float(parts["alpha"].reshape(())) / rank
    alpha = settings.get("lora_alpha", rank)
    # PEFT's keys are regular expressions that match the end of a layer's name; the first match wins.
    for pattern, special in settings.get("alpha_pattern", {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = special
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _adapter_settings(metadata: Mapping[str, str], folder: pathlib.Path) -> dict[str, Any]:
    """PEFT's settings of the adapter, from the file's header or from the file that PEFT writes next to it."""
    if "lora_adapter_metadata" in metadata:
        settings = json.loads(metadata["lora_adapter_metadata"])
        settings = {key.removeprefix("transformer."): value for key, value in settings.items()}
    elif (folder / "adapter_config.json").is_file():
        settings = read_json(folder / "adapter_config.json")
    else:
        return {}
    if settings.get("use_dora"):
        raise ValueError(f"the LoRA in {folder} is a DoRA, which cannot be merged as LoRA")
    return settings
