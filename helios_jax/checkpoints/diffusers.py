"""Import and export of the published (diffusers) folder layout, one component at a time.

Tensors are read by slice from memory-mapped safetensors straight into their target shardings: the largest
host copy is one published tensor. Everything is checked against the files' headers before a byte of
weights is read.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.checkpoints.components import Component, find_component
from helios_jax.checkpoints.key_tables import Entry, Layout, ParamPath, published_entries
from helios_jax.checkpoints.tensor_files import TensorFolder, write_tensors
from helios_jax.parallel.mesh import parameter_sharding
from helios_jax.typing import Array, DType, Int, Path

_LISTED = 12
"""Names spelled out in an error before the rest is only counted."""


def load_diffusers(
    folder: Path, component: str, *, dtype: DType | None = None, mesh: jax.sharding.Mesh | None = None
) -> nnx.Module:
    """Loads one network of a published checkpoint.

    Args:
        folder: The checkpoint (the folder that holds ``transformer/``, ``vae/``, ...) or the component's own
            folder.
        component: "transformer", "vae" or "text_encoder".
        dtype: Compute and parameter dtype; the parameters that are published as fp32-only stay fp32. ``None``
            keeps every tensor's stored dtype and computes in that of the largest.
        mesh: Mesh to shard the parameters over; ``None`` for one device.

    Returns:
        The network, an ``nnx.Module`` with its parameters on the device(s).

    Raises:
        FileNotFoundError: Folder, configuration or weights are missing.
        ValueError: Unsupported configuration; missing, unexpected or misshapen tensors (all listed);
            a truncated file.
    """
    parts = find_component(component)
    folder = component_folder(folder, component)
    config = parts.config.from_diffusers(read_json(folder / "config.json"))
    with TensorFolder(folder) as files:
        stored = {canonical: name for name in files.tensors if (canonical := parts.keys.canonical(name)) is not None}
        if dtype is None:
            largest = max(stored.values(), key=lambda name: np.prod(files.tensors[name].shape))
            abstract = parts.abstract(config, files.tensors[largest].dtype)
        else:
            abstract = parts.abstract(config, dtype)
        entries = published_entries(abstract, parts.keys)
        _check(folder, entries, stored, files)
        graph, state = nnx.split(abstract)
        flat = dict(nnx.to_flat_state(state))
        targets = {
            path: jax.ShapeDtypeStruct(
                variable.shape,
                variable.dtype if dtype is not None else _stored_dtype(path, entries, stored, files),
                sharding=parameter_sharding(variable.shape, mesh),
            )
            for path, variable in flat.items()
        }
        arrays = _read_parameters(entries, targets, lambda name, index: files.read(stored[name], index))
    filled = nnx.from_flat_state([(path, flat[path].replace(arrays[path])) for path in flat])
    return nnx.merge(graph, filled)


def save_diffusers(module: nnx.Module, folder: Path, component: str, *, shard_bytes: int = 10 * 10**9) -> None:
    """Writes one network in the published layout, as ``folder/component``.

    Args:
        module: The network.
        folder: The checkpoint folder; created if needed.
        component: "transformer", "vae" or "text_encoder".
        shard_bytes: Largest size of a weight file (10 GB, as published).

    Raises:
        FileExistsError: The component's folder already holds weights.
    """
    parts = find_component(component)
    target = FilePath(folder) / component
    if target.is_dir() and any(target.glob("*.safetensors*")):
        raise FileExistsError(f"{target} already holds weights; choose another folder or remove them first")
    target.mkdir(parents=True, exist_ok=True)
    entries = published_entries(module, parts.keys)
    flat = {path: variable[...] for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))}

    def read(name: str) -> np.ndarray:
        entry = entries[name]
        array = flat[entry.path]
        return entry.layout.to_published(np.asarray(array if entry.layer is None else array[entry.layer]))

    tensors = ((name, entry.shape, np.dtype(flat[entry.path].dtype)) for name, entry in entries.items())
    write_tensors(target, parts.weights, tensors, read, shard_bytes)
    write_json(target / "config.json", module.config.to_diffusers())


def component_folder(folder: Path, component: str) -> FilePath:
    """The component's own folder, given it or the checkpoint that holds it."""
    path = FilePath(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}")
    inner = path / component
    return inner if inner.is_dir() else path


def read_json(file: FilePath) -> dict[str, Any]:
    """Reads a JSON object. Raises FileNotFoundError or ValueError naming the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: is {file.parent} a checkpoint in the published layout?")
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def write_json(file: FilePath, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, indented."""
    file.write_text(json.dumps(content, indent=2) + "\n")


def _check(folder: FilePath, entries: Mapping[str, Entry], stored: Mapping[str, str], files: TensorFolder) -> None:
    """Raises ValueError unless the stored tensors are exactly those of the configuration."""
    shapes = {name: files.tensors[stored[name]].shape for name in stored}
    problems = {
        "missing": sorted(entries.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - entries.keys()),
        "misshapen": [
            f"{name} is {shapes[name]}, config.json asks for {entries[name].shape}"
            for name in sorted(entries.keys() & shapes.keys())
            if shapes[name] != entries[name].shape
        ],
    }
    if any(problems.values()):
        lines = [
            f"  {len(names)} {kind}: " + ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
            for kind, names in problems.items()
            if names
        ]
        raise ValueError(f"the tensors in {folder} do not fit its config.json:\n" + "\n".join(lines))


def _stored_dtype(
    path: ParamPath, entries: Mapping[str, Entry], stored: Mapping[str, str], files: TensorFolder
) -> np.dtype:
    """The widest dtype in which the tensors of one parameter are stored."""
    dtypes = {files.tensors[stored[name]].dtype for name, entry in entries.items() if entry.path == path}
    return max(dtypes, key=lambda dtype: dtype.itemsize)


Read = Callable[[str, tuple[slice, ...]], np.ndarray]


def _read_parameters(
    entries: Mapping[str, Entry], targets: Mapping[ParamPath, jax.ShapeDtypeStruct], read: Read
) -> dict[ParamPath, Array]:
    """Fills every parameter from its published tensor(s)."""
    arrays: dict[ParamPath, Array] = {}
    for name, entry in entries.items():
        target = targets[entry.path]
        if entry.layer is None:
            arrays[entry.path] = _read_one(name, entry, target.shape, target.dtype, target.sharding, read)
            continue
        if entry.path not in arrays:
            arrays[entry.path] = jnp.zeros(target.shape, target.dtype, device=target.sharding)
        layer_sharding = _without_layer_axis(target.sharding)
        layer = _read_one(name, entry, target.shape[1:], None, layer_sharding, read)
        arrays[entry.path] = _set_layer(arrays[entry.path], layer, entry.layer)
    return arrays


def _read_one(
    name: str, entry: Entry, shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding, read: Read
) -> Array:
    """Reads one published tensor into an array of ours; every device's part is read on its own."""

    def part(index: tuple[slice, ...]) -> np.ndarray:
        published = tuple(part or slice(None) for part in entry.layout.published_order(index))
        tensor = entry.layout.to_ours(read(name, published) if published else read(name, ()))
        return np.asarray(tensor, dtype)

    return jax.make_array_from_callback(shape, sharding, part)


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: Array, layer: Array, index: Int[Array, ""] | int) -> Array:
    # Rounding to the parameter's dtype happens on the device, where it is free.
    return stacked.at[index].set(layer.astype(stacked.dtype))


def _without_layer_axis(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
    return sharding


__all__ = ["Component", "Layout", "load_diffusers", "save_diffusers"]
