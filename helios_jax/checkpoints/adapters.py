"""Adapters of a transformer (``helios_jax.models.lora``) as LoRA files.

A file has one pair of factors per published tensor; a network has one per layer of ours, for all blocks of a stack and
all parts of a fused projection. Files are written with the names of diffusers and PEFT.
"""

import collections
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.checkpoints.key_tables import TRANSFORMER, Entry, published_entries
from helios_jax.checkpoints.tensor_files import save_tensors
from helios_jax.models.lora import adapted_layers, strip_lora
from helios_jax.models.network import ConfiguredModule
from helios_jax.parallel.mesh import readable
from helios_jax.typing import Array, Path
from helios_jax.user_input import user_path


def save_adapters(transformer: ConfiguredModule, path: Path) -> pathlib.Path:
    """Writes the adapters of a transformer as a LoRA file that diffusers and ``merge_lora_file`` read.

    Where several processes share the arrays, all of them call this, and the first one writes.

    Args:
        transformer: A transformer with adapters.
        path: The file to write, ending in ".safetensors".

    Returns:
        The file.

    Raises:
        ValueError: There are no adapters, or the file does not end in ".safetensors".
        FileExistsError: The file exists.
    """
    path = user_path(path, "lora")
    if path.suffix != ".safetensors":
        raise ValueError(f"a LoRA file must end in .safetensors, got {path}")
    if jax.process_index() == 0 and path.exists():
        raise FileExistsError(f"{path} exists; choose another file or remove it first")
    layers = adapted_layers(transformer)
    if not layers:
        raise ValueError("the transformer has no adapters to save; add_lora puts them on")
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, entry in published_entries(strip_lora(transformer), TRANSFORMER).items():
        *owner, parameter = entry.path
        layer = layers.get("/".join(map(str, owner)))
        if layer is None or parameter != "kernel":
            continue
        a = np.asarray(readable(_factor_of(entry, layer.lora_a[...], parts_axis=-2)))
        b = np.asarray(readable(_factor_of(entry, layer.lora_b[...], parts_axis=0)))
        name = name.removesuffix(".weight")
        ranks[name], alphas[name] = a.shape[-1], layer.lora_scale * a.shape[-1]
        tensors[f"transformer.{name}.lora_A.weight"] = entry.layout.to_published(a)
        pointwise = b.T.reshape(*b.T.shape, *[1] * (a.ndim - 2))
        tensors[f"transformer.{name}.lora_B.weight"] = np.ascontiguousarray(pointwise)
    if jax.process_index() > 0:
        return path
    settings = {f"transformer.{key}": value for key, value in _peft_settings(ranks, alphas).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, {"lora_adapter_metadata": json.dumps(settings, indent=2)})
    return path


def _factor_of(entry: Entry, factor: Array, parts_axis: int) -> Array:
    """The part of a layer's A or B that belongs to a published tensor."""
    if entry.layer is not None:
        factor = factor[entry.layer]
    if entry.columns is not None:
        part = entry.columns.start // (entry.columns.stop - entry.columns.start)
        factor = jnp.take(factor, part, axis=parts_axis)
    return factor


def _peft_settings(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """PEFT's description of the adapters: the most common rank and alpha, and the layers that differ."""
    rank, alpha = (collections.Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
    }
