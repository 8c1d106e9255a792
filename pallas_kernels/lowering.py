"""What calls a kernel is lowered once: within a program, and with a cache folder on disk once for all processes.

Pallas takes between a tenth of a second and a second of the host to lower a kernel. A 14B network with its decoder has
56 of them, and XLA's cache of compiled programs does not help: its key is the lowered program. So beside it, in the
folder ``kernels`` of JAX's compilation cache, the lowered code of each call is kept as ``jax.export`` writes it. Its
name is a digest of all that it depends on: shapes and settings, the sources of this package, the versions of JAX, and
the device.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jaxlib
from jax.extend import backend

_FOLDER = "kernels"

_KERNEL_CALL = "mosaic_gpu_v2"
"""Name of the custom call that Mosaic lowers kernels to. JAX does not promise that later versions can read its code;
the names of the files hold the version."""


def lowered_once[F: Callable](*static: str) -> Callable[[F], F]:
    """Decorates what calls a kernel, so that equal calls are lowered once. XLA inlines the calls first of all.

    Args:
        static: The keyword arguments that are not arrays.
    """

    def decorate(function: F) -> F:
        jitted = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            folder = None if kwargs.get("interpret") else _cache_folder()
            if folder is None:
                return jitted(*args, **kwargs)
            settings = {name: value for name, value in kwargs.items() if name in static}
            arrays = args, {name: value for name, value in kwargs.items() if name not in static}
            leaves, structure = jax.tree.flatten(arrays)
            shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
            return _from_disk(folder, function, structure, shapes, tuple(sorted(settings.items())))(*leaves)

        return call

    return decorate


def _cache_folder() -> pathlib.Path | None:
    """Where lowered kernels are kept: ``None`` without a cache, on other devices than GPUs, and on meshes."""
    cache = jax.config.jax_compilation_cache_dir
    if cache is None or "://" in cache or not jax.config.jax_enable_compilation_cache:
        return None
    if jax.default_backend() != "gpu" or not jax.sharding.get_abstract_mesh().empty:
        return None
    return pathlib.Path(cache) / _FOLDER


@functools.lru_cache(maxsize=1024)
def _from_disk(
    folder: pathlib.Path,
    function: Callable,
    structure: jax.tree_util.PyTreeDef,
    shapes: tuple[jax.ShapeDtypeStruct, ...],
    settings: tuple[tuple[str, Any], ...],
) -> Callable[..., Any]:
    """The function of the flat arrays, out of its file, which is written if need be."""
    described = [f"{function.__module__}.{function.__qualname__}", str(structure), str(shapes), repr(settings)]
    digest = hashlib.sha256(json.dumps([*described, *_surroundings()]).encode()).hexdigest()
    file = folder / f"{function.__name__}-{digest[:32]}"

    def of_leaves(*leaves: Any) -> Any:
        args, kwargs = jax.tree.unflatten(structure, leaves)
        return function(*args, **kwargs, **dict(settings))

    try:
        exported = jax.export.deserialize(bytearray(file.read_bytes()))
    except Exception:  # there is none, or one that cannot be read: what reading raises then is not said anywhere
        allowed = [jax.export.DisabledSafetyCheck.custom_call(_KERNEL_CALL)]
        code = jax.export.export(jax.jit(of_leaves), platforms=("cuda",), disabled_checks=allowed)(*shapes).serialize()
        _write(file, code)
        exported = jax.export.deserialize(code)  # so that this process and the next lower the same program

    call = jax.custom_batching.custom_vmap(jax.jit(exported.call))

    @call.def_vmap
    def call_batched(size: int, is_batched: list[bool], *leaves: Any) -> tuple[Any, Any]:
        """Pallas can put an axis in front of a kernel; lowered code is what it is."""
        out = jax.vmap(of_leaves, [0 if batched else None for batched in is_batched])(*leaves)
        return out, jax.tree.map(lambda _: True, out)

    return call


def _write(file: pathlib.Path, code: bytes | bytearray) -> None:
    """Writes a whole file or none; a full disk or a folder that may not be written to costs time only."""
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
    """What else decides how a kernel is lowered."""
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
