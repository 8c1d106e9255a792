"""Lowers each kernel call once: once within a program and, with a cache folder on disk, once for all processes.

Pallas takes a tenth of a second to a second of host time to lower a kernel, and a 14B network with its decoder has 56
of them. JAX's cache of compiled programs does not help, since its key is the lowered program. So the lowered code of
each call is kept as ``jax.export`` writes it, in the folder ``kernels`` of that cache. The name of a file is a digest
of everything that its code depends on: shapes and settings, the sources of this package, the versions of JAX, and the
device.

The mesh is not part of the name. A kernel is the code of one device, so it is the same without a mesh, on a mesh of one
device, and for each device inside ``jax.shard_map``.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jaxlib
from jax.extend import backend

from pallas_kernels import compat, devices

_FOLDER = "kernels"

_KERNEL_CALL = "mosaic_gpu_v2"
"""Name of the custom call that Mosaic lowers kernels to. JAX does not promise that later versions can read its code;
the names of the files contain the version."""


def lowered_once[**Arguments, Result](
    *static: str,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorates a function that calls a kernel, so that equal calls are lowered once.

    XLA inlines the resulting calls before it does anything else with a program.

    Args:
        static: The keyword arguments that are not arrays. They must be hashable and have distinct ``repr`` strings.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        jitted = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            compat.drop_module_numbers()
            settings = {name: value for name, value in kwargs.items() if name in static}
            arrays = args, {name: value for name, value in kwargs.items() if name not in static}
            leaves, structure = jax.tree.flatten(arrays)
            folder = None if kwargs.get("interpret") else _cache_folder()
            if folder is None:
                out = jitted(*args, **kwargs)
            else:
                shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
                out = _from_disk(folder, function, structure, shapes, tuple(sorted(settings.items())))(*leaves)
            return _vary_as(leaves, out)

        return call

    return decorate


def _vary_as(operands: Sequence[jax.Array], results: Any) -> Any:
    """Gives results the type that they have inside ``jax.shard_map``: different where an operand is.

    Kernels and exported code know nothing of the mesh, and JAX would take their results for equal on all devices.
    """
    axes = tuple(sorted(frozenset().union(*map(compat.varying_axes, operands))))
    return jax.tree.map(lambda result: jax.lax.pcast(result, axes, to="varying"), results) if axes else results


def _cache_folder() -> pathlib.Path | None:
    """The folder of lowered kernels; ``None`` where lowered code cannot be kept."""
    cache = jax.config.jax_compilation_cache_dir
    if cache is None or "://" in cache or not jax.config.jax_enable_compilation_cache:
        return None
    if jax.default_backend() != "gpu":
        return None
    # On a mesh of several devices with an axis that is not manual, the compiler would have to divide the kernel among
    # them, which it cannot. Ops take their references there. A kernel that is called anyway is left to JAX.
    if devices.compiler_splits_work():
        return None
    return pathlib.Path(cache) / _FOLDER


@functools.lru_cache(maxsize=1024)
def _from_disk(
    folder: pathlib.Path,
    function: Callable[..., Any],
    structure: jax.tree_util.PyTreeDef,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    settings: tuple[tuple[str, Any], ...],
) -> Callable[..., Any]:
    """The function of the flat arrays, read from its file, which is written first if it is missing or damaged."""
    described = [f"{function.__module__}.{function.__qualname__}", str(structure), str(shapes), repr(settings)]
    digest = hashlib.sha256(json.dumps([*described, *_surroundings()]).encode()).hexdigest()
    file = folder / f"{function.__name__}-{digest[:32]}"

    def of_leaves(*leaves: Any) -> Any:
        args, kwargs = jax.tree.unflatten(structure, leaves)
        return function(*args, **kwargs, **dict(settings))

    # deserialize does not document what it raises for damaged code, nor do all file systems for reading: whatever it
    # is, the code can be lowered again.
    try:
        exported = jax.export.deserialize(bytearray(file.read_bytes()))
    except Exception:
        allowed = [jax.export.DisabledSafetyCheck.custom_call(_KERNEL_CALL)]
        export = jax.export.export(jax.jit(of_leaves), platforms=("cuda",), disabled_checks=allowed)
        # Exported under a mesh, code states the mesh's number of devices and can be called with that number only. JAX
        # keeps the mesh per thread, and inside a trace has no public way to leave it, so a new thread, which has no
        # mesh, exports the code.
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
            code = thread.submit(lambda: export(*shapes).serialize()).result()
        _write(file, code)
        # Read back instead of using the export, so that this process and the next one compile the same program.
        exported = jax.export.deserialize(code)

    call = jax.custom_batching.custom_vmap(jax.jit(exported.call))

    @call.def_vmap
    def call_batched(size: int, is_batched: list[bool], *leaves: Any) -> tuple[Any, Any]:
        """Lowers the kernel again with one more axis: Pallas can batch a kernel, but not its lowered code."""
        out = jax.vmap(of_leaves, [0 if batched else None for batched in is_batched])(*leaves)
        return out, jax.tree.map(lambda _: True, out)

    return call


def _write(file: pathlib.Path, code: bytes | bytearray) -> None:
    """Writes the whole file or none of it. A full disk or a read-only folder costs time only, so errors are dropped."""
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(code)
        partial.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()


@functools.cache
def _surroundings() -> tuple[str, ...]:
    """What decides how a kernel is lowered, apart from the call: sources, versions, number types and device."""
    sources = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        sources.update(path.read_bytes())
    device = backend.get_default_device()
    return (
        sources.hexdigest(),
        jax.__version__,
        jaxlib.__version__,
        str(jax.config.jax_enable_x64),
        device.device_kind,
        str(getattr(device, "core_count", None)),
    )
