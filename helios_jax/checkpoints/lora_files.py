"""LoRA files: the updates that they hold for the transformer, under any of the usual names.

Supported names, each with or without a leading "transformer.", "diffusion_model.", "base_model.model.", "pipe.dit.":

    blocks.0.attn1.to_q.lora_A.weight, .lora_B.weight, .lora_B.bias      diffusers and PEFT
    blocks.0.attn1.to_q.lora_A.default.weight                            the same with an adapter's name
    blocks.0.self_attn.q.lora_down.weight, .lora_up.weight, .alpha       the names of Wan2.1 (ComfyUI, DiffSynth)
    lora_unet_blocks_0_self_attn_q.lora_down.weight, ...                 Kohya's trainers, musubi-tuner
    lora_unet__blocks_0_self_attn_q.lora_down.weight, ...                the trainers of Wan-Fun

A file may hold low-rank updates, dense ones (".diff" of weights, ".diff_b" of biases, ".diff_m" of modulation tables),
or both. alpha is taken from the layer's ".alpha" tensor, otherwise from the file's header (diffusers) or the
``adapter_config.json`` in the same folder (PEFT); without any of these it is the rank.

Files for Wan2.1's image-to-video models also update layers that Helios does not have, and some files update a text
encoder: these tensors are skipped with one warning. See ``helios_jax.checkpoints.lora_names`` for all names.
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

from helios_jax._warnings import warn_user
from helios_jax.checkpoints.components import raise_problems
from helios_jax.checkpoints.lora_argument import find_lora_file
from helios_jax.checkpoints.lora_names import IMAGE_LAYERS, other_method, parse_name, published_parameters, skipped_part
from helios_jax.checkpoints.lora_tensors import LoraTensors, open_lora
from helios_jax.typing import Path
from helios_jax.user_input import finite_number

_IMAGE_PATCH_CHANNELS = 36
"""16 channels of the video, 4 of a mask and 16 of an image."""


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
        ValueError: Several files in a folder; not a safetensors file; DoRA, LoKr, LoHa and others; names that are not
            understood; layers with one factor only, or whose factors do not fit each other (all listed); rank 0;
            values that are not finite; nothing for the transformer.
    """
    path = find_lora_file(path)
    with open_lora(path) as tensors:
        layers = _sort_by_layer(tensors)
        settings = _adapter_settings(tensors.metadata, path) if layers else {}
    deltas: dict[str, LoraDelta] = {}
    problems = collections.defaultdict(list)
    for layer, parts in layers.items():
        for name, update in _updates(layer, parts, settings).items():
            if isinstance(update, str):
                problems["incomplete or inconsistent"].append(f"{layer} ({update})")
            elif name in deltas:
                problems["given twice"].append(f"{name} ({deltas[name].layer}, {layer})")
            else:
                factors, weight = update
                deltas[name] = LoraDelta(layer=layer, factors=factors, weight=weight)
    raise_problems(f"{path} is not a usable LoRA file:", problems)
    return deltas


Parts = dict[str, np.ndarray]
"""The tensors of one layer by role."""


def _sort_by_layer(tensors: LoraTensors) -> dict[str, Parts]:
    """All tensors of a file: layer (without wrapper prefixes) -> role -> tensor."""
    problems = collections.defaultdict(list)
    skipped = collections.Counter()
    places: dict[tuple[str, str], str] = {}
    for name in tensors.names:
        if part := skipped_part(name):
            skipped[part] += 1
        elif method := other_method(name):
            problems[f"of {method}, which cannot be merged as LoRA"].append(name)
        elif (parsed := parse_name(name)) is None:
            problems["with names that are not understood"].append(name)
        elif (parsed.layer, parsed.role) in places:
            problems["given twice"].append(name)
        else:
            places[parsed.layer, parsed.role] = name
    # All names are checked before the first tensor is read.
    raise_problems(f"{tensors.path} is not a usable LoRA file; tensors:", problems)
    for name in _image_patches(tensors, places):
        skipped[IMAGE_LAYERS] += 1
        places = {place: other for place, other in places.items() if other != name}
    if skipped:
        parts = " and ".join(f"{count} of {part}" for part, count in sorted(skipped.items()))
        if not places:
            raise ValueError(f"{tensors.path} updates nothing in this model: all its tensors are {parts}")
        warn_user(f"{tensors.path}: skipped tensors that have no place in this model, {parts}")
    layers: dict[str, Parts] = collections.defaultdict(dict)
    for (layer, role), name in places.items():
        layers[layer][role] = tensors.read(name, integers=role == "alpha")
    return layers


def _image_patches(tensors: LoraTensors, places: Mapping[tuple[str, str], str]) -> list[str]:
    """Tensors for the patch embedding of image-to-video models, which reads a mask and an image next to the video."""
    return [
        name
        for (layer, role), name in places.items()
        if role not in ("diff_b", "up_bias")
        and published_parameters(layer)[0] == "patch_embedding.weight"
        and any(
            tensors.shape(places[layer, main])[1:2] == (_IMAGE_PATCH_CHANNELS,)
            for main in ("down", "diff")
            if (layer, main) in places
        )
    ]


Update = tuple[tuple[np.ndarray, ...], float]


def _updates(layer: str, parts: Parts, settings: Mapping[str, Any]) -> dict[str, Update | str]:
    """A layer's updates by published name: factors and their weight, or a description of the problem."""
    weight_name, bias_name, table_name = published_parameters(layer)
    updates: dict[str, Update | str] = {}
    # The bias that belongs to B is scaled like the product B A; dense updates are not scaled at all.
    weight = 1.0
    if parts.keys() & {"down", "up", "up_bias", "alpha"}:
        if not {"down", "up"} <= parts.keys():
            return {weight_name: f"{' and '.join(parts)} given; A (lora_down) and B (lora_up) needed"}
        up, down = parts["up"], parts["down"]
        if problem := _problem_of_factors(up, down):
            return {weight_name: problem}
        factor = _alpha_over_rank(weight_name.removesuffix(".weight"), parts, settings)
        if isinstance(factor, str):
            return {weight_name: factor}
        weight = factor
        updates[weight_name] = (up, down), weight
    dense = (("diff", weight_name, 1.0), ("diff_b", bias_name, 1.0), ("diff_m", table_name, 1.0))
    for role, name, factor in (*dense, ("up_bias", bias_name, weight)):
        if role in parts:
            twice = f"its {name.rpartition('.')[2]} is updated twice"
            updates[name] = twice if name in updates else ((parts[role],), factor)
    return updates


def _problem_of_factors(up: np.ndarray, down: np.ndarray) -> str | None:
    """Why B and A cannot be multiplied; empty if they can."""
    if up.ndim < 2 or down.ndim < 2:
        return f"B {up.shape} and A {down.shape} are not matrices"
    if not up.size or not down.size:
        return f"B {up.shape} and A {down.shape} have rank 0 or no values"
    if up.shape[1] != down.shape[0] or math.prod(up.shape[2:]) != 1:
        return f"B {up.shape} and A {down.shape} do not have one rank"
    return None


def _alpha_over_rank(layer: str, parts: Parts, settings: Mapping[str, Any]) -> float | str:
    """The factor of a layer's product, or what is wrong with its alpha."""
    rank = parts["down"].shape[0]
    if "alpha" in parts:  # The layer's own tensor takes precedence over the settings of the whole file.
        alpha = parts["alpha"]
        return float(alpha.reshape(())) / rank if alpha.size == 1 else f"alpha has shape {alpha.shape}, not one value"
    alpha = settings.get("lora_alpha", rank)
    # PEFT's keys are regular expressions that match the end of a layer's name; the first match wins.
    for pattern, special in settings.get("alpha_pattern", {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = special
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _adapter_settings(metadata: Mapping[str, str], file: pathlib.Path) -> dict[str, Any]:
    """PEFT's settings of the adapter, from the file's header or from the file that PEFT writes next to it.

    Raises:
        ValueError: They are not a JSON object, describe another method, or contain an alpha that is not a number.
    """
    beside = file.parent / "adapter_config.json"
    if "lora_adapter_metadata" in metadata:
        source, text = f"lora_adapter_metadata in the header of {file}", metadata["lora_adapter_metadata"]
    elif beside.is_file():
        source, text = str(beside), beside.read_bytes()
    else:
        return {}
    try:
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ValueError("an object is needed")
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from error
    settings = {key.removeprefix("transformer."): value for key, value in settings.items()}
    method = "DoRA" if settings.get("use_dora") else str(settings.get("peft_type") or "LORA")
    if method != "LORA":
        raise ValueError(f"{source}: the adapter is a {method}, which cannot be merged as LoRA")
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{source}: alpha_pattern={patterns!r}; a mapping from layers to numbers is needed")
    checked: dict[str, Any] = {"use_rslora": bool(settings.get("use_rslora")), "alpha_pattern": {}}
    for pattern, alpha in patterns.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{source}: alpha_pattern has {pattern!r}, not a regular expression: {error}") from error
        checked["alpha_pattern"][pattern] = finite_number(alpha, f"{source}: alpha_pattern[{pattern!r}]")
    if settings.get("lora_alpha") is not None:
        checked["lora_alpha"] = finite_number(settings["lora_alpha"], f"{source}: lora_alpha")
    return checked
