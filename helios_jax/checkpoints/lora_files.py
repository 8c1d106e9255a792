"""LoRA files for the transformer: read under any of the usual names, merge into the weights.

    W <- W + scale (alpha / rank) B A           low-rank updates; A [rank, in], B [out, rank]               (1)
    W <- W + scale dW                           dense updates (".diff" of weights, ".diff_b" of biases)     (2)

A patch embedding's A is a convolution kernel [rank, in, frames, rows, columns] and its B a pointwise one. The
products are computed in fp32 and each weight is rounded once, to the dtype that it is stored in.

Names that are understood, each with or without a leading "transformer.", "diffusion_model.", "base_model.model.":

    blocks.0.attn1.to_q.lora_A.weight, .lora_B.weight, .lora_B.bias      diffusers and PEFT
    blocks.0.attn1.to_q.lora_A.default.weight                            the same with an adapter's name
    blocks.0.self_attn.q.lora_down.weight, .lora_up.weight, .alpha       the names of Wan2.1
    lora_unet_blocks_0_self_attn_q.lora_down.weight, ...                 Kohya's trainers

alpha is the layer's ".alpha" tensor, else what the file's header (diffusers) or the ``adapter_config.json`` beside
it (PEFT) says, else the rank.
"""

import collections
import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.checkpoints.components import raise_problems, read_json
from helios_jax.checkpoints.key_tables import TRANSFORMER, Entry, Layout, published_entries
from helios_jax.checkpoints.tensor_files import TensorFolder
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.typing import AnyArray, Array, Float, Path

_PREFIXES = r"(?:(?:base_model|model|diffusion_model|transformer)\.)*"

_ROLES = {
    "down": r"(.+)\.lora_(?:A|down)(?:\.[^.]+)?\.weight",
    "up": r"(.+)\.lora_(?:B|up)(?:\.[^.]+)?\.weight",
    "up_bias": r"(.+)\.lora_(?:B|up)(?:\.[^.]+)?\.bias",
    "alpha": r"(.+)\.alpha",
    "diff": r"(.+)\.diff",
    "diff_b": r"(.+)\.diff_b",
}
"""What a tensor of a LoRA file is to its layer, by its name."""

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
"""Layer names of Wan2.1 and what diffusers calls them; Kohya's are the former with "_" for "."."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoraDelta:
    """The update of one published tensor, in its published layout.

    Attributes:
        layer: The layer's name as the file has it, for errors.
        factors: (B, A) of equation (1), or (dW,) of equation (2).
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
    """Reads a LoRA file, whatever its names.

    Args:
        path: A safetensors file, or a folder that holds one (as ``save_lora_weights`` of diffusers writes it).

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
            # Modulation tables are parameters, not layers with a weight.
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


def merge_lora_file[M: ConfiguredModule](
    transformer: Network[M], path: Path, scale: float = 1.0, *, donate: bool = False
) -> Network[M]:
    """Merges a LoRA file into a transformer, on its device(s).

    Args:
        transformer: The transformer; its arrays stay valid, since running streams may use them.
        path: See ``read_lora``.
        scale: Strength; -scale undoes an earlier merge up to rounding.
        donate: Give up the transformer's arrays: the merge then needs memory for one layer more, where it
            otherwise needs it for a second copy of every parameter that changes.

    Returns:
        The merged transformer. Parameters that the file does not touch are shared with ``transformer``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: What ``read_lora`` raises; updates of tensors that this transformer does not have, or has in
            another shape (all listed).
    """
    deltas = read_lora(path)
    entries = published_entries(transformer.module, TRANSFORMER)
    check_fit(path, deltas, entries)
    updates = collections.defaultdict(list)
    for name, delta in deltas.items():
        updates[entries[name].path].append((entries[name], delta))
    state = dict(nnx.to_flat_state(transformer.params))
    for parameter, changes in updates.items():
        array = state[parameter][...]
        home = array.sharding
        # Parked parameters (host memory) visit the device one at a time. Unless donated, _add gets a copy.
        array = jax.device_put(array, home.with_memory_kind("device"), may_alias=None if donate else False)
        for entry, delta in changes:
            weight = np.float32(scale * delta.weight)
            array = _add(array, entry.layer, delta.factors, weight, entry.layout, entry.columns)
        state[parameter] = state[parameter].replace(jax.device_put(array, home))
    return dataclasses.replace(transformer, params=nnx.from_flat_state(list(state.items())))


@functools.partial(jax.jit, static_argnames=("layout", "columns"), donate_argnames="parameter")
def _add(
    parameter: Array,
    layer: int | Array | None,
    factors: tuple[AnyArray, ...],
    weight: AnyArray,
    layout: Layout,
    columns: slice | None = None,
) -> Array:
    """Adds an update to (a layer, columns of) a parameter in place: one tensor's product is alive at a time."""
    place = (..., columns or slice(None)) if layer is None else (layer, ..., columns or slice(None))
    old = parameter[place]
    new = (old.astype(jnp.float32) + weight * layout.to_ours(_product(*factors))).astype(old.dtype)
    return parameter.at[place].set(new)


def _product(up: AnyArray, down: AnyArray | None = None) -> Float[Array, "..."]:
    up = jnp.asarray(up, jnp.float32)
    if down is None:
        return up
    flat = jnp.asarray(down, jnp.float32).reshape(down.shape[0], -1)
    product = jnp.matmul(up.reshape(up.shape[0], -1), flat, precision=jax.lax.Precision.HIGHEST)
    return product.reshape(up.shape[0], *down.shape[1:])


def check_fit(path: Path, deltas: Mapping[str, LoraDelta], entries: Mapping[str, Entry]) -> None:
    """Raises ValueError unless every update has its tensor."""
    blocks = 1 + max(entry.layer for entry in entries.values() if entry.layer is not None)
    raise_problems(
        f"{path} does not fit this transformer of {blocks} blocks; was it trained for another model?",
        {
            "not in the transformer": [
                f"{delta.layer} ({name})" if delta.layer not in name else name
                for name, delta in deltas.items()
                if name not in entries
            ],
            "misshapen": [
                f"{delta.layer}: the file updates {delta.shape}, {name} is {entries[name].shape}"
                for name, delta in deltas.items()
                if name in entries and delta.shape != entries[name].shape
            ],
        },
    )


def _lora_file(path: pathlib.Path) -> pathlib.Path:
    """The file itself, or the only one in a folder."""
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
    """All tensors of a file: layer, without the prefix of its namespace -> role -> tensor."""
    problems = collections.defaultdict(list)
    layers: dict[str, Parts] = collections.defaultdict(dict)
    for name in files.tensors:
        found = [(role, match[1]) for role, pattern in _ROLES.items() if (match := re.fullmatch(pattern, name))]
        if "dora_scale" in name or "lora_magnitude_vector" in name:
            problems["of DoRA, which cannot be merged as LoRA"].append(name)
        elif not found:
            problems["with names that are not understood"].append(name)
        else:
            [(role, layer)] = found
            layer = re.sub(f"^{_PREFIXES}", "", layer)
            if role in layers[layer]:
                problems["given twice"].append(name)
            layers[layer][role] = files.read(name)
    raise_problems(f"{path} is not a usable LoRA file; tensors:", problems)
    return layers


def _published_layer(layer: str) -> str:
    """A layer's name in diffusers; unknown names come back as they are."""
    kohya = layer.startswith("lora_unet_")
    for pattern, published in _WAN_NAMES:
        if kohya:
            pattern = "lora_unet_" + pattern.replace(r"\.", "_")
        if re.fullmatch(pattern, layer):
            return re.sub(f"^{pattern}$", published, layer)
    return layer


Update = tuple[tuple[np.ndarray, ...], float]


def _updates(layer: str, parts: Parts, settings: Mapping[str, Any]) -> dict[str, Update | str]:
    """Updates of a layer's "weight" and "bias": factors and their weight, or what is wrong with them."""
    updates: dict[str, Update | str] = {}
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
    rank = parts["down"].shape[0]
    if "alpha" in parts:
        return float(parts["alpha"].reshape(())) / rank
    alpha = settings.get("lora_alpha", rank)
    for pattern, special in settings.get("alpha_pattern", {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = special
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _adapter_settings(metadata: Mapping[str, str], folder: pathlib.Path) -> dict[str, Any]:
    """PEFT's settings of the adapter: from the file's header, or from the file that PEFT writes beside it."""
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
