"""Norm, activation and sums of frames on Hopper.

The pass is bound by memory: it reads every frame and writes twice as many. A block of one warpgroup computes some
pixels of the four frames that a pair of results depends on. TMA copies them into shared memory, each thread replaces
them by the four sums, in the fragments that it would own in a wgmma, and TMA copies the sums out. The block of the next
pair reads two of the frames as well; it is the next one in the grid, so it finds them in L2.
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
"""Pixels of a block: what a warpgroup holds in registers at a time."""

_FRAMES = 4
"""Frames that a pair of results depends on, and sums of them."""


@lowered_once("interpret")
def norm_silu_pairs(
    x: Float[Array, "B T P C"],
    gamma: Float[Array, " C"],
    *,
    interpret: compat.InterpretGPUParams | None = None,
) -> tuple[Float[Array, "B pairs P C"], ...]:
    """The four sums of each pair of frames, as ``norm_silu_pairs.api`` defines them; pixels are one axis."""
    batch, frames, pixels, channels = x.shape
    width, swizzle = (64, 128) if channels % 64 == 0 else (32, 64)
    slices = [slice(start, start + width) for start in range(0, channels, width)]

    def body(x_gmem: Ref, gamma_gmem: Ref, *refs: Ref) -> None:
        out_gmem, smem, arrived = refs[:_FRAMES], refs[_FRAMES : 2 * _FRAMES], refs[-1]
        sample, pair, first = lax.axis_index("sample"), lax.axis_index("pair"), lax.axis_index("tile") * _ROWS
        numbers = [2 * pair - 2 + i for i in range(_FRAMES)]
        for number, tile in zip(numbers, smem, strict=True):
            # For frames beyond the clip, its nearest frame is read and scaled by zero.
            inside = jnp.clip(number, 0, frames - 1)
            compat.copy_gmem_to_smem(x_gmem.at[sample, inside, pl.ds(first, _ROWS)], tile, arrived)

        def weight(part: slice) -> Array:
            source = gamma_gmem.at[part]
            if interpret is not None:
                return source[...].astype(jnp.float32)
            return compat.load(source, layout=compat.Layout.WGMMA.reduce(0), optimized=False).astype(jnp.float32)

        compat.barrier_wait(arrived)
        scales = []
        for number, tile in zip(numbers, smem, strict=True):
            squares = sum((tile.at[:, part][...].astype(jnp.float32) ** 2).sum(axis=1) for part in slices)
            exists = jnp.where((number >= 0) & (number < frames), math.sqrt(channels), 0.0)
            scales.append(lax.rsqrt(jnp.maximum(squares, 1e-24)) * exists)
        for part in slices:
            gain = lax.broadcast_in_dim(weight(part), (_ROWS, width), [1])
            y = []
            for tile, scale in zip(smem, scales, strict=True):
                z = tile.at[:, part][...].astype(jnp.float32)
                y.append(_silu(z * lax.broadcast_in_dim(scale, z.shape, [0]) * gain))
            sums = (y[0] - y[2], y[1] + y[2], y[2] - y[1], y[1] - y[3])
            for tile, d in zip(smem, sums, strict=True):
                tile.at[:, part][...] = d.astype(x.dtype)
        compat.commit_smem()
        for tile, target in zip(smem, out_gmem, strict=True):
            compat.copy_smem_to_gmem(tile, target.at[sample, pair, pl.ds(first, _ROWS)])
        compat.wait_smem_to_gmem(0)

    pairs = (frames + 1) // 2
    out_type = jax.ShapeDtypeStruct((batch, pairs, pixels, channels), x.dtype)
    tiles = [compat.tiled_smem((_ROWS, channels), x.dtype, swizzle) for _ in range(_FRAMES)]
    return compat.kernel(
        body,
        out_type=(out_type,) * _FRAMES,
        scratch_types=(*tiles, compat.Barrier(num_arrivals=_FRAMES)),
        # The pair is the last axis, so that blocks that share frames run at the same time.
        grid=(batch, pl.cdiv(pixels, _ROWS), pairs),
        grid_names=("sample", "tile", "pair"),
        compiler_params=compat.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        kernel_name="norm_silu_pairs",
        interpret=interpret,
    )(x, gamma)


def _silu(z: Float[Array, "P C"]) -> Float[Array, "P C"]:
    """z sigmoid(z) by one exponential."""
    return z / (1 + jnp.exp2(z * -math.log2(math.e)))
