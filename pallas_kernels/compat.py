"""The part of Pallas' Mosaic GPU dialect that the kernels use.

The dialect is experimental and its names move between JAX releases: kernels import them from here and nowhere
else, so that a change of JAX is a change of this file.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
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
    set_max_registers,
    wait_smem_to_gmem,
    wgmma,
    wgmma_accumulator_load,
)
from jax.extend import backend

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
    "force_gpu_interpret_mode",
    "is_hopper",
    "kernel",
    "layout_cast",
    "load",
    "multiprocessors",
    "pl",
    "set_max_registers",
    "tiled_smem",
    "wait_smem_to_gmem",
    "wgmma",
    "wgmma_accumulator_load",
]

Ref = Any
"""A reference inside a kernel, whole (``jax.Ref``) or sliced (a private type of Pallas)."""


def tiled_smem(shape: tuple[int, ...], dtype: jnp.dtype, swizzle: int = 128) -> pl.MemoryRef:
    """Shared memory in the tiled and swizzled order that TMA writes and wgmma reads; ``swizzle`` in bytes."""
    tiling = TilingTransform((8, swizzle // jnp.dtype(dtype).itemsize))
    return SMEM(shape, dtype, transforms=(tiling, SwizzleTransform(swizzle)))


def is_hopper() -> bool:
    """Whether the default device has compute capability 9.0, the only one with wgmma."""
    return jax.default_backend() == "gpu" and backend.get_default_device().compute_capability == "9.0"


def multiprocessors() -> int:
    """Streaming multiprocessors of the default device."""
    return backend.get_default_device().core_count
