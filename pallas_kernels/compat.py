"""The part of Pallas' Mosaic GPU dialect that the kernels use.

The dialect is experimental and its names move between JAX releases: kernels import them from here and nowhere
else, so that a change of JAX is a change of this file.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mosaic
from jax.experimental.pallas.mosaic_gpu import (
    ACC,
    SMEM,
    Barrier,
    CompilerParams,
    InterpretGPUParams,
    Layout,
    SwizzleTransform,
    Tiling,
    TilingTransform,
    barrier_arrive,
    barrier_wait,
    broadcasted_iota,
    commit_smem,
    copy_gmem_to_smem,
    copy_smem_to_gmem,
    force_gpu_interpret_mode,
    kernel,
    layout_cast,
    load,
    planar_snake,
    set_max_registers,
    wait_smem_to_gmem,
    wgmma,
    wgmma_accumulator_load,
    wgmma_wait,
)
from jax.extend import backend
from jaxlib.mlir import ir

__all__ = [
    "ACC",
    "SMEM",
    "Barrier",
    "CompilerParams",
    "InterpretGPUParams",
    "Layout",
    "Ref",
    "Tiling",
    "barrier_arrive",
    "barrier_wait",
    "broadcasted_iota",
    "commit_smem",
    "compiler_splits_work",
    "copy_gmem_to_smem",
    "copy_smem_to_gmem",
    "force_gpu_interpret_mode",
    "is_hopper",
    "kernel",
    "layout_cast",
    "load",
    "multiprocessors",
    "pl",
    "planar_snake",
    "set_max_registers",
    "tiled_smem",
    "wait_smem_to_gmem",
    "wgmma",
    "wgmma_accumulator_load",
    "wgmma_wait",
]

Ref = Any
"""A reference inside a kernel, whole (``jax.Ref``) or sliced (a private type of Pallas)."""


def tiled_smem(shape: tuple[int, ...], dtype: jnp.dtype, swizzle: int = 128) -> pl.MemoryRef:
    """Shared memory in the tiled and swizzled order that TMA writes and wgmma reads; ``swizzle`` in bytes."""
    tiling = TilingTransform((8, swizzle // jnp.dtype(dtype).itemsize))
    return SMEM(shape, dtype, transforms=(tiling, SwizzleTransform(swizzle)))


def compiler_splits_work() -> bool:
    """Whether the function being traced will run on a mesh of several devices that the compiler divides it among.

    It cannot divide a kernel. Inside ``jax.shard_map`` every device runs its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and not mesh.are_all_axes_manual


def _leave_kernels_unnumbered() -> None:
    """Makes a kernel's code independent of how many were compiled before it in the process.

    Mosaic names every module after its kernel and a running number, for the files that it can dump. The name is part
    of what XLA's cache of compiled programs looks at, so that a process which compiles in another order than the one
    before it would find nothing there.
    """
    find_options = getattr(mosaic.dialect, "get_or_set_dump_options", None)
    if find_options is None or "MOSAIC_GPU_DUMP_TO" in os.environ:
        return

    def find_options_of_unnumbered(module: Any) -> Any:
        attributes = module.operation.attributes
        if _MODULE_NAME not in attributes:
            attributes[_MODULE_NAME] = ir.StringAttr.get("kernel", module.context)
        return find_options(module)

    mosaic.dialect.get_or_set_dump_options = find_options_of_unnumbered


_MODULE_NAME = "mosaic_gpu.dump_basename"
_leave_kernels_unnumbered()


def is_hopper() -> bool:
    """Whether the default device has compute capability 9.0, the only one with wgmma."""
    return jax.default_backend() == "gpu" and backend.get_default_device().compute_capability == "9.0"


def multiprocessors() -> int:
    """Streaming multiprocessors of the default device."""
    return backend.get_default_device().core_count
