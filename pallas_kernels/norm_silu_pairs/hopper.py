"""Norm, activation and sums of frames on Hopper.

The pass is bound by memory: it reads every frame and writes twice as many. A block of one warpgroup takes some pixels
of the four frames that a pair of results depends on through shared memory: TMA brings them in, each thread puts the
four sums in their place, in the fragments that it would own in a wgmma, and TMA copies them out. Two of the frames are
read by the block of the next pair as well, which stands beside it in the grid, so that they come from L2.
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
"""Frames behind a pair of results, and sums made of them."""


@lowered_once("interpret")
def norm_silu_pairs(
    x: Float[Array, "B T P C"],
    gamma: Float[Array, " C"],
    *,
    interpret: compat.InterpretGPUParams | None = None,
) -> tuple[Float[Array, "B pairs P C"], ...]:
    """See ``pallas_kernels.norm_silu_pairs.norm_silu_pairs``; the pixels of a frame are one axis."""
    batch, frames, pixels, channels = x.shape
    width, swizzle = (64, 128) if channels % 64 == 0 else (32, 64)
    slices = [slice(start, start + width) for start in range(0, channels, width)]

    def body(x_gmem: Ref, gamma_gmem: Ref, *refs: Ref) -> None:
        out_gmem, smem, arrived = refs[:_FRAMES], refs[_FRAMES : 2 * _FRAMES], refs[-1]
        sample, pair, first = lax.axis_index("sample"), lax.axis_index("pair"), lax.axis_index("tile") * _ROWS
        numbers = [2 * pair - 2 + i for i in range(_FRAMES)]
        for number, tile in zip(numbers, smem, strict=True):
            # Frames beyond the clip are read as its nearest and scaled by zero.
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
        # Pairs next to each other, for L2.
        grid=(batch, pl.cdiv(pixels, _ROWS), pairs),
        grid_names=("sample", "tile", "pair"),
        compiler_params=compat.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        kernel_name="norm_silu_pairs",
        interpret=interpret,
    )(x, gamma)


def _silu(z: Float[Array, "P C"]) -> Float[Array, "P C"]:
    """z sigmoid(z) by one exponential."""
    return z / (1 + jnp.exp2(z * -math.log2(math.e)))
