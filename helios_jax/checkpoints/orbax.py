"""Orbax folders: one component as ``config.json`` and ``weights/``, with our names and layouts of parameters.

Nothing is transposed or stacked on loading: every device reads its own part of each stack. Weights are written
under a temporary name and renamed when complete, so an interrupted save cannot be loaded.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from helios_jax.checkpoints.components import (
    check_tensors,
    component_folder,
    find_component,
    new_component_folder,
    read_json,
    with_parameters,
    write_json,
)
from helios_jax.checkpoints.key_tables import ParamPath
from helios_jax.models.network import ConfiguredModule
from helios_jax.parallel.mesh import parameter_sharding
from helios_jax.typing import DType, Path

_WEIGHTS = "weights"
_ITEM = "state"
"""Name of the parameters inside the Orbax checkpoint."""

_CHUNK_BYTES = 2**27
"""Largest piece that is stored and read as one: a device that needs part of a stack reads little more than that."""

_IN_FLIGHT_BYTES = 2**33
"""Host memory for reads in flight; without a limit a restore holds all the weights at once."""


def save_orbax(module: ConfiguredModule, folder: Path, component: str) -> None:
    """Writes one network as ``folder/component/{config.json, weights/}``.

    Args:
        module: The network.
        folder: The checkpoint folder; created if needed.
        component: "transformer", "vae" or "text_encoder".

    Raises:
        FileExistsError: The component's folder already holds weights.
    """
    from orbax.checkpoint import v1 as ocp

    find_component(component)
    target = new_component_folder(folder, component)
    write_json(target / "config.json", module.config.to_diffusers())
    options = ocp.Context()
    options.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    parameters: Any = {_dotted(path): array[...] for path, array in nnx.to_flat_state(nnx.state(module, nnx.Param))}
    with options:
        ocp.save(str(target.resolve() / _WEIGHTS), parameters, checkpointable_name=_ITEM)


def load_orbax(
    folder: Path, component: str, *, dtype: DType | None = None, mesh: jax.sharding.Mesh | None = None
) -> ConfiguredModule:
    """Loads one network that ``save_orbax`` wrote.

    Args:
        folder: The checkpoint or the component's own folder.
        component: "transformer", "vae" or "text_encoder".
        dtype: Compute and parameter dtype; the parameters that are published as fp32-only stay fp32. ``None``
            keeps every parameter's stored dtype and computes in the dtype of the largest.
        mesh: Mesh to shard the parameters over; ``None`` for one device.

    Returns:
        The network, a ``ConfiguredModule`` with its parameters on the device(s).

    Raises:
        FileNotFoundError: Folder, configuration or weights are missing.
        ValueError: Unsupported configuration; missing, unexpected or misshapen parameters (all listed);
            damaged weights.
    """
    from orbax.checkpoint import v1 as ocp

    parts = find_component(component)
    folder = component_folder(folder, component)
    config = parts.config.from_diffusers(read_json(folder / "config.json"))
    stored = stored_parameters(folder)
    largest = max(stored.values(), key=lambda array: math.prod(array.shape))
    abstract = parts.abstract(config, largest.dtype if dtype is None else dtype)
    wanted = dict(nnx.to_flat_state(nnx.state(abstract, nnx.Param)))
    check_tensors(
        f"the parameters in {folder / _WEIGHTS} do not fit the config.json next to them:",
        needed={_dotted(path): variable.shape for path, variable in wanted.items()},
        given={name: array.shape for name, array in stored.items()},
        source="config.json",
    )
    targets: Any = {
        _dotted(path): jax.ShapeDtypeStruct(
            variable.shape,
            stored[_dotted(path)].dtype if dtype is None else variable.dtype,
            sharding=parameter_sharding(variable.shape, mesh),
        )
        for path, variable in wanted.items()
    }
    options = ocp.Context()
    options.memory.read_concurrent_bytes = max(_IN_FLIGHT_BYTES, math.prod(largest.shape) * largest.dtype.itemsize)
    with options:
        arrays: Any = ocp.load(str(folder.resolve() / _WEIGHTS), targets, checkpointable_name=_ITEM)
    return with_parameters(abstract, {path: arrays[_dotted(path)] for path in wanted})


def has_orbax_weights(folder: pathlib.Path) -> bool:
    """Whether a component's own folder holds complete weights in this layout."""
    return (folder / _WEIGHTS).is_dir()


def stored_parameters(folder: pathlib.Path) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter in a component's own folder, by dotted path; reads no weights.

    Raises:
        FileNotFoundError: There are no (complete) weights.
        ValueError: They are damaged.
    """
    from orbax.checkpoint import v1 as ocp

    weights = folder / _WEIGHTS
    if not weights.is_dir():
        found = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(f"{folder} holds no complete {_WEIGHTS}/ folder in Orbax's format; found {found}")
    try:
        arrays: Any = ocp.metadata(str(weights.resolve()), checkpointable_name=_ITEM).metadata
    except (ocp.errors.InvalidLayoutError, ValueError, OSError) as error:
        raise ValueError(f"{weights} is not a complete Orbax checkpoint ({error}); copy it again") from error
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}


def _dotted(path: ParamPath) -> str:
    # One flat mapping of dotted names: integers in paths are kept, and the folder reads like a table.
    return ".".join(map(str, path))
