"""Norm, activation and gathering on Hopper.

The pass is bound by memory: it reads every frame once and writes it three times, next to its successors. A block of one
warpgroup takes some pixels of one frame through shared memory: TMA brings them in, each thread works in place on
the fragments that it would own in a wgmma, and TMA copies the result to the three places where it is wanted.
Several blocks share an SM and hide each other's latency.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import compat
from pallas_kernels.compat import Ref, pl
from pallas_kernels.lowering import lowered_once

_ROWS = 64
"""Pixels that a warpgroup holds in registers at a time."""

_TILE_BYTES = 49152
"""Shared memory of a block: four of them fit on an SM, but for 384 channels, whose registers allow two."""

_WIDTHS = (64, 96)
"""Channels that a warpgroup holds in registers at a time: the first that divides."""

_TAPS = 3


@lowered_once("interpret")
def norm_silu_taps(
    x: Float[Array, "B T P C"],
    gamma: Float[Array, " C"],
    *,
    interpret: compat.InterpretGPUParams | None = None,
) -> Float[Array, "B T P C3"]:
    """See ``pallas_kernels.norm_silu_taps.norm_silu_taps``; the pixels of a frame are one axis."""
    batch, frames, pixels, channels = x.shape
    tile = _TILE_BYTES // (2 * channels) // _ROWS * _ROWS
    swizzle = 128 if channels % 64 == 0 else 64
    width = next(width for width in _WIDTHS if channels % width == 0)
    slices = [slice(start, start + width) for start in range(0, channels, width)]

    def body(x_gmem: Ref, gamma_gmem: Ref, out_gmem: Ref, smem: Ref, arrived: Ref) -> None:
        sample, frame, first = lax.axis_index("sample"), lax.axis_index("frame"), lax.axis_index("tile") * tile
        compat.copy_gmem_to_smem(x_gmem.at[sample, frame, pl.ds(first, tile)], smem, arrived)

        def weight(part: slice) -> Array:
            source = gamma_gmem.at[part]
            if interpret is not None:
                return source[...].astype(jnp.float32)
            return compat.load(source, layout=compat.Layout.WGMMA.reduce(0), optimized=False).astype(jnp.float32)

        def store(tap: int, later: int) -> None:
            """Copies the tile to channels ``tap`` of the frame ``later`` frames on."""
            target = out_gmem.at[sample, frame + later, pl.ds(first, tile), pl.ds(tap * channels, channels)]
            compat.copy_smem_to_gmem(smem, target)

        compat.barrier_wait(arrived)
        for start in range(0, tile, _ROWS):
            parts = [smem.at[start : start + _ROWS, part] for part in slices]
            squares = sum((part[...].astype(jnp.float32) ** 2).sum(axis=1) for part in parts)
            scale = lax.rsqrt(jnp.maximum(squares, 1e-24)) * math.sqrt(channels)
            for part, ref in zip(slices, parts, strict=True):
                z = ref[...].astype(jnp.float32)
                z = z * lax.broadcast_in_dim(scale, z.shape, [0]) * lax.broadcast_in_dim(weight(part), z.shape, [1])
                ref[...] = silu(z).astype(x.dtype)
        compat.commit_smem()
        for later in range(_TAPS):
            pl.when(frame + later < frames)(lambda later=later: store(_TAPS - 1 - later, later))

        # In front of the clip lie zeros.
        @pl.when(frame == 0)
        def _() -> None:
            compat.wait_smem_to_gmem(0, wait_read_only=True)
            for start in range(0, tile, _ROWS):
                rows = smem.at[start : start + _ROWS]
                rows[...] = jnp.zeros((_ROWS, channels), x.dtype)
            compat.commit_smem()
            store(0, 0)
            store(1, 0)
            pl.when(frames > 1)(lambda: store(0, 1))

        compat.wait_smem_to_gmem(0)

    return compat.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((batch, frames, pixels, _TAPS * channels), x.dtype),
        scratch_types=(compat.tiled_smem((tile, channels), x.dtype, swizzle), compat.Barrier()),
        # Frames next to each other: their blocks write parts of the same lines, which meet in L2.
        grid=(batch, pl.cdiv(pixels, tile), frames),
        grid_names=("sample", "tile", "frame"),
        compiler_params=compat.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        kernel_name="norm_silu_taps",
        interpret=interpret,
    )(x, gamma)


def silu(z: Float[Array, "P C"]) -> Float[Array, "P C"]:
    """z sigmoid(z) by one exponential."""
    return z / (1 + jnp.exp2(z * -math.log2(math.e)))
