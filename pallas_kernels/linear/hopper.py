"""Matrix product on Hopper's tensor cores (sm_90a), with bias and activation before the only write.

A thread block computes tiles of the result: two *consumer* warpgroups compute one half each, and the *producer* only
issues TMA copies of slices along the contraction into a ring of slots in shared memory. The grid is persistent; tiles
are visited in a snake of bands of rows, so that tiles in flight share what they read in L2. The size of the tiles is
chosen so that few of them run past the end and the last round of thread blocks is full.

On a chip at its power limit this kernel and cuBLAS multiply at the same rate. The kernel saves time around the product:
bias and activation take no pass of their own, and, inside a scan over stacked layers, the layer's weights are not
copied, since XLA passes a slice of the stack to a custom call in place and to cuBLASLt as a copy.
"""

import functools
import math

import jax
from jaxtyping import Array, Float

from pallas_kernels import compat, devices
from pallas_kernels.compat import pl
from pallas_kernels.linear import kernel as body
from pallas_kernels.linear.config import CONSUMERS, LinearConfig, choose_config
from pallas_kernels.lowering import lowered_once

_BAND_ROWS = 2048
"""Rows of a band of the snake, at most: the tiles in flight then cover about as many rows as columns."""


@lowered_once("activation", "transposed", "config", "num_blocks", "interpret")
def linear_hopper(
    x: Float[Array, "S D"],
    kernel: Float[Array, "D1 D2"],
    bias: Float[Array, " D3"] | None,
    *,
    activation: str | None,
    transposed: bool = False,
    config: LinearConfig | None = None,
    num_blocks: int | None = None,
    interpret: compat.InterpretGPUParams | None = None,
) -> Float[Array, "S D3"]:
    """Runs the kernel; S must be a multiple of 8.

    Args:
        x: Rows.
        kernel: [in, out], or [out, in] if ``transposed``; inputs a multiple of 64, outputs of 64.
        bias: One number per output.
        activation: ``"gelu"`` (tanh approximation) or ``None``.
        transposed: Layout of ``kernel``.
        config: Tile shapes; ``choose_config`` by default.
        num_blocks: Thread blocks, by default one per multiprocessor.
        interpret: Parameters of the interpreter, to run without a GPU.
    """
    length, features = x.shape
    out_features = kernel.shape[0 if transposed else 1]
    num_blocks = num_blocks or devices.multiprocessors()
    config = config or choose_config(length, out_features, num_blocks)
    block_rows, block_columns = config.block
    stages, chunk = config.stages, config.chunk
    grid = (pl.cdiv(length, block_rows), pl.cdiv(out_features, block_columns))
    num_tiles = math.prod(grid)
    plan = body.Plan(
        config=config,
        activation=activation,
        transposed=transposed,
        dtype=x.dtype,
        out_features=out_features,
        grid=grid,
        # Bands of equal height: a shorter last band would share less.
        band=pl.cdiv(grid[0], pl.cdiv(grid[0] * block_rows, _BAND_ROWS)),
        num_tiles=num_tiles,
        num_blocks=min(num_tiles, num_blocks),
        steps=features // body.DEPTH,
        interpreted=interpret is not None,
    )
    slice_shape = (block_columns, body.DEPTH) if transposed else (body.DEPTH, block_columns)
    swizzle = chunk * x.dtype.itemsize
    return compat.kernel(
        functools.partial(body.run_block, plan),
        out_type=jax.ShapeDtypeStruct((length, out_features), x.dtype),
        scratch_types=(
            compat.tiled_smem((stages, block_rows, body.DEPTH), x.dtype),
            compat.tiled_smem((stages, *slice_shape), x.dtype, 128 if transposed else swizzle),
            compat.tiled_smem((CONSUMERS, config.rows, chunk), x.dtype, swizzle),
            compat.Barrier(num_arrivals=2, num_barriers=stages),
            compat.Barrier(num_arrivals=CONSUMERS, num_barriers=stages),
        ),
        grid=(plan.num_blocks,),
        grid_names=("block",),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=compat.CompilerParams(approx_math=True),
        kernel_name="linear",
        interpret=interpret,
    )(*(operand for operand in (x, kernel, bias) if operand is not None))
