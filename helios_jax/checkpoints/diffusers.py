"""Import and export of the published (diffusers) folder layout, one component at a time.

Tensors are read by slice from memory-mapped safetensors straight into their target shardings: the largest
host copy is one published tensor. Everything is checked against the files' headers before a byte of
weights is read.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.checkpoints.components import (
    Component,
    check_tensors,
    component_folder,
    find_component,
    floating_dtype,
    new_component_folder,
    with_parameters,
    write_json,
)
from helios_jax.checkpoints.key_tables import Entry, ParamPath, published_entries
from helios_jax.checkpoints.tensor_files import TensorFolder, write_tensors
from helios_jax.models.network import ConfiguredModule
from helios_jax.parallel.mesh import parameter_sharding
from helios_jax.typing import Array, DType, Int, Path


def load_diffusers(
    folder: Path,
    component: str,
    *,
    dtype: DType | None = None,
    mesh: jax.sharding.Mesh | None = None,
    config: Any = None,
) -> ConfiguredModule:
    """Loads one network of a published checkpoint.

    Args:
        folder: The checkpoint (the folder that holds ``transformer/``, ``vae/``, ...) or the component's own
            folder; or the name of a shipped one.
        component: "transformer", "vae" or "text_encoder".
        dtype: Compute and parameter dtype; the parameters that are published as fp32-only stay fp32. ``None``
            keeps every tensor's stored dtype and computes in the dtype of the largest tensor.
        mesh: Mesh to shard the parameters over; ``None`` for one device.
        config: Configuration to build the network from; that of ``config.json`` by default.

    Returns:
        The network, an ``nnx.Module`` with its parameters on the device(s).

    Raises:
        FileNotFoundError: Folder, configuration or weights are missing.
        ValueError: Unsupported configuration; missing, unexpected or misshapen tensors (all listed);
            a damaged file.
    """
    parts = find_component(component)
    dtype = None if dtype is None else floating_dtype(dtype, "dtype")
    folder = component_folder(folder, component)
    config = parts.read_config(folder) if config is None else config
    with TensorFolder(folder) as files:
        stored = _stored_names(files, parts)
        if dtype is None and stored:
            largest = max(stored.values(), key=lambda name: math.prod(files.tensors[name].shape))
            abstract = parts.abstract(config, files.tensors[largest].dtype)
        else:
            abstract = parts.abstract(config, dtype or "float32")
        entries = published_entries(abstract, parts.keys)
        _check_stored(folder, entries, stored, files)
        targets = {
            path: jax.ShapeDtypeStruct(
                variable.shape,
                variable.dtype if dtype is not None else _stored_dtype(path, entries, stored, files),
                sharding=parameter_sharding(variable.shape, mesh),
            )
            for path, variable in nnx.to_flat_state(nnx.state(abstract, nnx.Param))
        }
        arrays = _read_parameters(entries, targets, lambda name, index: files.read(stored[name], index))
    return with_parameters(abstract, arrays)


class StoredTensors:
    """The tensors of one network in the published layout, by name and as they are stored; a context manager.

    Args:
        folder: The checkpoint, or the component's own folder.
        component: "transformer", "vae" or "text_encoder".

    Attributes:
        config: The configuration of the network.
        dtypes: Stored dtype of each tensor by its canonical name.

    Raises:
        FileNotFoundError: Folder, configuration or weights are missing.
        ValueError: See ``load_diffusers``.
    """

    def __init__(self, folder: Path, component: str) -> None:
        parts = find_component(component)
        folder = component_folder(folder, component)
        self.config = parts.read_config(folder)
        self._files = TensorFolder(folder)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._stored = _stored_names(self._files, parts)
            entries = published_entries(parts.abstract(self.config, "float32"), parts.keys)
            _check_stored(folder, entries, self._stored, self._files)
            self.dtypes = {name: self._files.tensors[stored].dtype for name, stored in self._stored.items()}
            undo.pop_all()

    def read(self, name: str) -> np.ndarray:
        """A tensor in its published layout."""
        return self._files.read(self._stored[name])

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    def __enter__(self) -> "StoredTensors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_diffusers(folder: Path, component: str) -> None:
    """Raises the errors of ``load_diffusers`` about configuration, names and shapes; reads only the headers."""
    parts = find_component(component)
    folder = component_folder(folder, component)
    config = parts.read_config(folder)
    with TensorFolder(folder) as files:
        entries = published_entries(parts.abstract(config, "float32"), parts.keys)
        _check_stored(folder, entries, _stored_names(files, parts), files)


def _stored_names(files: TensorFolder, parts: Component) -> dict[str, str]:
    """Canonical published name -> the name under which a tensor is stored."""
    stored: dict[str, str] = {}
    for name in files.tensors:
        canonical = parts.keys.canonical(name)
        if canonical in stored:
            file = files.tensors[name].file
            raise ValueError(f"{file} holds {name!r} and {stored[canonical]!r}, two names of one tensor; remove one")
        if canonical is not None:
            stored[canonical] = name
    return stored


def _check_stored(
    folder: FilePath, entries: Mapping[str, Entry], stored: Mapping[str, str], files: TensorFolder
) -> None:
    check_tensors(
        f"the tensors in {folder} do not fit its config.json:",
        needed={name: entry.shape for name, entry in entries.items()},
        given={canonical: files.tensors[name].shape for canonical, name in stored.items()},
        source="config.json",
    )


def save_diffusers(module: ConfiguredModule, folder: Path, component: str, *, shard_bytes: int = 10 * 10**9) -> None:
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
    target = new_component_folder(folder, component)
    entries = published_entries(module, parts.keys)
    flat = {path: variable[...] for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))}

    def read(name: str) -> np.ndarray:
        entry = entries[name]
        array = flat[entry.path]
        return entry.layout.to_published(np.asarray(entry.of(array)))

    tensors = ((name, entry.shape, np.dtype(flat[entry.path].dtype)) for name, entry in entries.items())
    write_tensors(target, parts.weights, tensors, read, shard_bytes)
    write_json(target / "config.json", module.config.to_diffusers())


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
        if entry.is_whole:
            arrays[entry.path] = _read_one(name, entry, target.shape, target.dtype, target.sharding, read)
            continue
        if entry.path not in arrays:
            arrays[entry.path] = jnp.zeros(target.shape, target.dtype, device=target.sharding)
        shape, sharding = target.shape, target.sharding
        if entry.layer is not None:
            shape, sharding = shape[1:], _without_layer_axis(sharding)
        if entry.columns is not None:
            shape = (*shape[:-1], entry.columns.stop - entry.columns.start)
        tensor = _read_one(name, entry, shape, None, sharding, read)
        arrays[entry.path] = _set_part(arrays[entry.path], tensor, entry.layer, entry.columns)
    return arrays


def _read_one(
    name: str, entry: Entry, shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding, read: Read
) -> Array:
    """Reads one published tensor into our layout; every device's part is read separately."""

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        whole = [slice(None)] * len(shape)
        published = tuple(axis or slice(None) for axis in entry.layout.published_order(index or whole))
        tensor = entry.layout.to_ours(read(name, published) if published else read(name, ()))
        with np.errstate(over="ignore"):  # What overflows is found when all weights are read.
            return np.asarray(tensor, dtype)

    return jax.make_array_from_callback(shape, sharding, part)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _set_part(parameter: Array, tensor: Array, layer: Int[Array, ""] | int | None, columns: slice | None) -> Array:
    # Rounding to the parameter's dtype happens on the device, where it is free.
    place = (
        parameter.at[..., columns or slice(None)] if layer is None else parameter.at[layer, ..., columns or slice(None)]
    )
    return place.set(tensor.astype(parameter.dtype))


def _without_layer_axis(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
    return sharding
