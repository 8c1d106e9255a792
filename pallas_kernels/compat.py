"""The part of Pallas' Mosaic GPU dialect that the kernels use.

The dialect is experimental and its names change between JAX releases. Kernels import them only from here, so that a new
release of JAX needs changes in this file alone.
"""

import functools
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
    "copy_gmem_to_smem",
    "copy_smem_to_gmem",
    "drop_module_numbers",
    "force_gpu_interpret_mode",
    "kernel",
    "layout_cast",
    "load",
    "pl",
    "planar_snake",
    "set_max_registers",
    "tiled_smem",
    "varying_axes",
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


@functools.cache
def drop_module_numbers() -> None:
    """Makes the code of a kernel independent of how many kernels the process has lowered before it.

    Mosaic names every module after its kernel and a running number, for the files that it can dump. The name is part
    of the lowered program, which is the key of JAX's cache of compiled programs: a process that lowers the same kernels
    in another order would find nothing there. With this patch all modules have one name, unless files are dumped,
    which need the numbers.

    ``lowered_once`` calls this before it lowers a kernel; further calls have no effect.
    """
    # JAX 0.11.2 sets the name whether or not anything is dumped. The patch can go when JAX sets it only for dumps:
    # tests/pallas_kernels/compat_test.py then passes without it. Versions without the function do not number modules.
    find_options = getattr(mosaic.dialect, "get_or_set_dump_options", None)
    if find_options is None or "MOSAIC_GPU_DUMP_TO" in os.environ:
        return

    def find_options_of_unnumbered(module: ir.Module) -> Any:
        attributes = module.operation.attributes
        if _MODULE_NAME not in attributes:
            attributes[_MODULE_NAME] = ir.StringAttr.get("kernel", module.context)
        return find_options(module)

    mosaic.dialect.get_or_set_dump_options = find_options_of_unnumbered


_MODULE_NAME = "mosaic_gpu.dump_basename"


def varying_axes(array: jax.Array) -> frozenset[str]:
    """The manual mesh axes along which an array in ``jax.shard_map`` differs between devices, as far as JAX knows.

    Empty outside ``jax.shard_map`` and for ``check_vma=False``.
    """
    type_ = jax.typeof(array)
    # JAX 0.11.2 has moved the attribute ``vma`` of earlier versions into ``manual_axis_type``.
    return type_.manual_axis_type.varying if hasattr(type_, "manual_axis_type") else type_.vma
