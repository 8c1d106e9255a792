"""Adapters of a transformer (``helios_jax.models.lora``) to and from LoRA files.

A file has one pair of factors per published tensor; a network has one per layer of ours, with all blocks of a stack and
all parts of a fused projection in it. Files are written with the names of diffusers and PEFT, and read with any names
that ``lora_files`` understands.
"""

import collections
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.checkpoints.components import raise_problems
from helios_jax.checkpoints.key_tables import TRANSFORMER, Entry, ParamPath, published_entries
from helios_jax.checkpoints.lora_files import LoraDelta, read_lora
from helios_jax.checkpoints.lora_merge import check_fit
from helios_jax.models.lora import adapted_layers, attach, strip_lora
from helios_jax.models.network import ConfiguredModule
from helios_jax.typing import Array, Float, Path


def save_adapters(transformer: ConfiguredModule, path: Path) -> pathlib.Path:
    """Writes the adapters of a transformer as a LoRA file that diffusers and ``merge_lora_file`` read.

    Args:
        transformer: A transformer with adapters.
        path: The file to write, ending in ".safetensors".

    Returns:
        The file.

    Raises:
        ValueError: There are no adapters, or the file's ending is another.
        FileExistsError: The file exists.
    """
    from safetensors.numpy import save_file

    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a LoRA file must end in .safetensors, got {path}")
    if path.exists():
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
        a = np.asarray(_factor_of(entry, layer.lora_a[...], parts_axis=-2))
        b = np.asarray(_factor_of(entry, layer.lora_b[...], parts_axis=0))
        name = name.removesuffix(".weight")
        ranks[name], alphas[name] = a.shape[-1], layer.lora_scale * a.shape[-1]
        tensors[f"transformer.{name}.lora_A.weight"] = entry.layout.to_published(a)
        pointwise = b.T.reshape(*b.T.shape, *[1] * (a.ndim - 2))
        tensors[f"transformer.{name}.lora_B.weight"] = np.ascontiguousarray(pointwise)
    settings = {f"transformer.{key}": value for key, value in _peft_settings(ranks, alphas).items()}
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, partial, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(settings, indent=2)})
    partial.rename(path)
    return path


def load_adapters[M: ConfiguredModule](transformer: M, path: Path) -> M:
    """Puts the adapters of a LoRA file on a transformer, so that their training can go on.

    Args:
        transformer: A transformer without adapters; it stays as it is.
        path: See ``read_lora``.

    Returns:
        The transformer with adapters; other arrays are shared.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: What ``read_lora`` and ``merge_lora_file`` raise; dense updates; layers of a stack, or parts of a
            fused projection, that differ in rank or in alpha or that are missing.
    """
    deltas = read_lora(path)
    entries = published_entries(transformer, TRANSFORMER)
    check_fit(path, deltas, entries)
    transformer = nnx.merge(*nnx.split(transformer))
    problems = collections.defaultdict(list)
    for parameter, places in _by_parameter(entries).items():
        found = [deltas[name] for name in places if name in deltas]
        if not found:
            continue
        if any(delta.rank is None for delta in found):
            problems["dense, not low-rank"] += [delta.layer for delta in found if delta.rank is None]
        elif len(found) < len(places) or len({(delta.rank, delta.weight) for delta in found}) > 1:
            problems["without one rank and alpha for the whole stack"].append(".".join(map(str, parameter)))
        else:
            layer: Any = functools.reduce(_child, parameter[:-1], transformer)
            attach(layer, *_stack_factors(places, deltas), found[0].weight)
    raise_problems(f"{path} cannot be loaded as adapters (merge_lora_file can merge it); layers:", problems)
    return transformer


def _by_parameter(entries: Mapping[str, Entry]) -> dict[ParamPath, dict[str, Entry]]:
    """Published tensors by the parameter that holds them."""
    places: dict[ParamPath, dict[str, Entry]] = collections.defaultdict(dict)
    for name, entry in entries.items():
        places[entry.path][name] = entry
    return places


def _child(module: Any, name: str | int) -> Any:
    return module[name] if isinstance(name, int) else getattr(module, name)


def _stack_factors(
    places: Mapping[str, Entry], deltas: Mapping[str, LoraDelta]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """A and B of a layer of ours from those of its published tensors, which come part by part or layer by layer."""
    pairs = []
    for name, entry in places.items():
        up, down = (np.asarray(factor, np.float32) for factor in deltas[name].factors)
        pairs.append((entry.layout.to_ours(down), up.reshape(up.shape[0], -1).T))
    entry = next(iter(places.values()))
    stacked, fused = entry.layer is not None, entry.columns is not None
    parts = len({str(place.columns) for place in places.values()})
    a, b = (np.stack(factors).reshape(parts, -1, *factors[0].shape) for factors in zip(*pairs, strict=True))
    # [parts, layers, ...] -> [layers, ..., parts, r] and [layers, parts, r, out], without the axes that the layer lacks
    a, b = np.moveaxis(a, 0, -2), np.moveaxis(b, 0, 1)
    if not fused:
        a, b = a.squeeze(-2), b.squeeze(1)
    return (jnp.asarray(a), jnp.asarray(b)) if stacked else (jnp.asarray(a[0]), jnp.asarray(b[0]))


def _factor_of(entry: Entry, factor: Array, parts_axis: int) -> Array:
    """The part of a layer's A or B that belongs to a published tensor."""
    if entry.layer is not None:
        factor = factor[entry.layer]
    if entry.columns is not None:
        part = entry.columns.start // (entry.columns.stop - entry.columns.start)
        factor = jnp.take(factor, part, axis=parts_axis)
    return factor


def _peft_settings(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """PEFT's description of the adapters; layers whose rank or alpha is not the usual one are listed."""
    rank, alpha = (collections.Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
    }
