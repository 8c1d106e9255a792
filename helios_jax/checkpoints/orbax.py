"""Orbax folders: one component as ``config.json`` and ``weights/``, with our names and layouts of parameters.

Nothing is transposed or stacked on loading: every device reads its own part of each stack. Weights are written
under a temporary name and renamed when complete, so an interrupted save cannot be loaded.

Orbax's files have checksums for their indices but none for the weights themselves (Zarr's crc32c codec cannot be chosen
through Orbax, and the compressor's own checksum is off), so ``digests.json`` next to them has a digest of every
parameter. The arrays are checked on the devices, in the stored dtype; folders of earlier versions, which lack the file,
are loaded unchecked.
"""

import contextlib
import gc
import inspect
import logging
import math
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
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
from helios_jax.checkpoints.digests import check_digests, digests_of, read_digests, write_digests
from helios_jax.checkpoints.key_tables import ParamPath
from helios_jax.models.network import ConfiguredModule
from helios_jax.parallel.mesh import parameter_sharding
from helios_jax.typing import Array, DType, Path

_WEIGHTS = "weights"
_DIGESTS = "digests.json"
_ITEM = "state"
"""Name of the parameters inside the Orbax checkpoint."""

_CHUNK_BYTES = 2**27
"""Largest piece that is stored and read as one: a device that needs part of a stack reads little more than that."""

_IN_FLIGHT_BYTES = 2**33
"""Host memory for reads in flight; without a limit a restore holds all the weights at once."""

_CAST_BYTES = 2**31
"""Parameters that are cast are read in groups of this size: only one group at a time exists in the stored dtype."""


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
    # Loading does not need these files, and they could be damaged.
    options.array.saving.array_metadata_store = None
    options.array.saving.enable_write_sharding_file = False
    parameters: Any = {_dotted(path): array[...] for path, array in nnx.to_flat_state(nnx.state(module, nnx.Param))}
    # Written before the weights, so that a folder with complete weights always has its digests.
    write_digests(target / _DIGESTS, digests_of(parameters))
    try:
        with options, _quiet():
            ocp.save(str(target.resolve() / _WEIGHTS), parameters, checkpointable_name=_ITEM)
    except jax.errors.JaxRuntimeError:  # An error of the device, such as too little memory.
        raise
    except (ValueError, OSError, RuntimeError) as error:  # The types that Orbax and TensorStore raise on a full disk.
        raise OSError(f"{target / _WEIGHTS} cannot be written ({_reason(error)}); is the disk full?") from error


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
    digests = read_digests(folder / _DIGESTS, stored)
    arrays: dict[str, Array] = {}
    dtypes = {} if dtype is None else {_dotted(path): variable.dtype for path, variable in wanted.items()}
    for names in _groups(stored, dtypes):
        shardings = {name: parameter_sharding(stored[name].shape, mesh) for name in names}
        read = _read(folder / _WEIGHTS, {name: stored[name] for name in names}, shardings)
        check_digests(folder / _WEIGHTS, digests, read)
        arrays |= (
            read
            if dtype is None
            else {
                name: read[name].astype(variable.dtype)
                for path, variable in wanted.items()
                if (name := _dotted(path)) in read
            }
        )
    return with_parameters(abstract, {path: arrays[_dotted(path)] for path in wanted})


def _groups(stored: Mapping[str, jax.ShapeDtypeStruct], dtypes: Mapping[str, DType]) -> Iterator[list[str]]:
    """Names that are read together: all that keep their dtype, then the others in groups, the largest first."""
    same = [name for name, array in stored.items() if dtypes.get(name, array.dtype) == array.dtype]
    if same:
        yield same
    group, size = [], 0
    sizes = {name: math.prod(stored[name].shape) * stored[name].dtype.itemsize for name in stored.keys() - {*same}}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if group and size + sizes[name] > _CAST_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += sizes[name]
    if group:
        yield group


def _read(
    weights: pathlib.Path,
    stored: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, jax.sharding.Sharding],
) -> dict[str, Array]:
    """Reads some of the parameters, in the dtype that is stored."""
    from orbax.checkpoint import v1 as ocp

    targets: Any = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=shardings[name]) for name, array in stored.items()
    }
    largest = max(math.prod(array.shape) * array.dtype.itemsize for array in stored.values())
    options = ocp.Context()
    options.memory.read_concurrent_bytes = max(_IN_FLIGHT_BYTES, largest)
    options.pytree.loading.partial_load = True
    with options, _damage_as_one_line(weights):
        arrays: Any = ocp.load(str(weights.resolve()), targets, checkpointable_name=_ITEM)
    return dict(arrays)


def _reason(error: Exception) -> str:
    """The cause in a few words: TensorStore's messages have thousands of characters."""
    if files := re.findall(r'local file \\?"([^"\\]+)', str(error)):
        return f"{files[-1]} cannot be read"
    if "reading array index" in str(error):
        return "the data of a parameter cannot be read"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"


@contextlib.contextmanager
def _damage_as_one_line(weights: pathlib.Path) -> Iterator[None]:
    """Turns Orbax's errors about a damaged folder into one short ValueError, and silences its log."""
    with _quiet():
        try:
            yield
        except jax.errors.JaxRuntimeError:  # An error of the device, such as too little memory.
            raise
        except Exception as error:  # Of any type: ValueError, KeyError, JSONDecodeError, even Exception itself.
            reason = _reason(error)
            # What the error refers to are the reads that Orbax has abandoned; they are freed when this block ends.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            raise ValueError(f"{weights} is not a complete Orbax checkpoint ({reason}); copy it again") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses tracebacks for errors that are raised anyway.

    Orbax's threads log them. And Orbax reads all arrays at once and abandons the others when one cannot be read; Python
    prints a traceback for each of those whenever it frees them, which may be during the call or long after it.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.level for logger in loggers]
    hook = sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda unraisable: None if inspect.iscoroutine(unraisable.object) else hook(unraisable)
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = hook
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


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
    with _damage_as_one_line(weights):
        _read_index(weights)
        metadata: Any = ocp.metadata(str(weights.resolve()), checkpointable_name=_ITEM).metadata
        # None: Orbax could not read it and has only logged why.
        arrays = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in dict(metadata or {}).items()}
    if not arrays:
        raise ValueError(f"{weights} is not a complete Orbax checkpoint (its index is damaged); copy it again")
    return arrays


def _read_index(weights: pathlib.Path) -> None:
    """Reads TensorStore's index of all arrays, whose nodes have checksums.

    Orbax opens all arrays at once and abandons the others when one fails; each of them then prints a traceback.
    """
    import tensorstore

    store = {"driver": "ocdbt", "base": f"file://{weights.resolve() / _ITEM}/"}
    if not tensorstore.KvStore.open(store).result().list().result():
        raise ValueError("its index is missing")


def _dotted(path: ParamPath) -> str:
    # One flat mapping of dotted names: integers in paths are kept, and the folder reads like a table.
    return ".".join(map(str, path))
