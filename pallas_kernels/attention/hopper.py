"""Softmax attention on Hopper's tensor cores (sm_90a), after FlashAttention-3 (arXiv 2407.08608).

A thread block has three warpgroups. Two *consumers* compute 64 queries each; the *producer* only issues TMA copies of
blocks of keys and values into a ring of slots in shared memory. With c = scale log2(e), a consumer visits the key
blocks j = T-1 .. 0:

    S_j = Q K_j^T                                                  (1)
    m   = c rowmax(S_(T-1)),        of the first block only        (2)
    P_j = 2^(c S_j - m),            l <- l + rowsum(P_j)           (3)
    O  <- O + P_j V_j                                              (4)

and ends with out = O / l and lse = m ln 2 + ln l. Because blocks are visited backwards, the first block, which is
peeled off the loop, is the only one with keys to mask. It also holds the key that may count n times: ln(n) / scale is
added to its scores. A consumer issues (1) of a block before (4) of the previous one, so that the tensor cores have work
while it starts on the softmax. Nothing orders the two consumers; they drift into opposite phases by themselves.

Softmax is the same for every m, so m need not be the largest logit. It only has to prevent overflow, and P may be
larger than one, since bf16 has the exponents of fp32. The usual running maximum costs every block a maximum over all
scores, its exchange between the lanes of a row and a rescaling of O: a third of all instructions outside the tensor
cores. Instead, a thread block checks the sums when all its tiles are done. A tile with a sum that has reached 2^64 (a
score exceeds the largest of its row's first block by 40 or so) or is not a number is computed again, now with

    m  <- max(m, c rowmax(S_j)),    a = 2^(m_before - m),    l <- a l,    O <- a O      (5)

before (3). If P is fp16, with its narrower range of exponents, all tiles are computed that way from the start.

The grid is persistent: a thread block walks over tiles of 128 queries, and the next tile's queries, keys and values
are loaded while the last one is finished. A tile of queries that runs past the end needs no mask: TMA fills with zeros
what it reads out of bounds and skips what it would write there.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels import compat, devices
from pallas_kernels.attention import block, kernel
from pallas_kernels.attention.config import AttentionConfig
from pallas_kernels.compat import pl
from pallas_kernels.lowering import lowered_once


@lowered_once(
    "num_heads",
    "first_heads",
    "scale",
    "kv_length",
    "last_key_count",
    "return_lse",
    "config",
    "num_blocks",
    "interpret",
)
def attention_hopper(
    q: Float[Array, "B S N0 K"],
    k: Float[Array, "B S2 N1 K"],
    v: Float[Array, "B S2 N2 K"],
    *,
    num_heads: int,
    first_heads: tuple[int, int, int],
    scale: float,
    kv_length: int,
    last_key_count: int,
    return_lse: bool,
    config: AttentionConfig,
    num_blocks: int | None = None,
    interpret: compat.InterpretGPUParams | None = None,
) -> tuple[Float[Array, "B S N K"], Float[Array, "B N S"] | None]:
    """Runs the kernel; ``S`` and ``S2`` must be multiples of 8.

    Args:
        q: Queries of heads ``first_heads[0]`` onwards; other heads of the array are not read.
        k: Keys, with ``first_heads[1]``.
        v: Values, with ``first_heads[2]``. Rows at and beyond ``kv_length`` must be finite.
        num_heads: Heads to compute.
        first_heads: See ``q``, ``k`` and ``v``; the three may be one array.
        scale: Positive factor of the logits.
        kv_length: Keys at and beyond it are ignored.
        last_key_count: How many times key ``kv_length - 1`` counts.
        return_lse: Whether to return the natural logarithm of the sum of exponentials, fp32.
        config: Tile shapes.
        num_blocks: Thread blocks, by default one per multiprocessor.
        interpret: Parameters of the interpreter, to run without a GPU.
    """
    batch, length, _, head_dim = q.shape
    dtype, block_kv, stages = q.dtype, config.block_kv, config.stages
    tiles_per_head = pl.cdiv(length, block.TILE)
    num_tiles = batch * num_heads * tiles_per_head
    num_steps = pl.cdiv(kv_length, block_kv)
    plan = block.Plan(
        num_heads=num_heads,
        first_heads=first_heads,
        scale=scale,
        return_lse=return_lse,
        head_dim=head_dim,
        dtype=dtype,
        block_kv=block_kv,
        stages=stages,
        num_blocks=min(num_tiles, num_blocks or devices.multiprocessors()),
        tiles_per_head=tiles_per_head,
        num_tiles=num_tiles,
        num_steps=num_steps,
        # With a single block of keys its maximum is the maximum of all.
        may_repeat=dtype == jnp.bfloat16 and num_steps > 1,
        interpreted=interpret is not None,
    )
    biases = _biases(kv_length - (num_steps - 1) * block_kv, block_kv, last_key_count, scale)

    # In (4) a wgmma contracts swizzle / itemsize keys at a time, which must divide the block.
    v_swizzle = 128 if block_kv % 64 == 0 else 64
    q_tiles = compat.tiled_smem((block.CONSUMERS, block.ROWS, head_dim), dtype)
    out, lse = compat.kernel(
        functools.partial(kernel.run_block, plan),
        out_type=(
            jax.ShapeDtypeStruct((batch, length, num_heads, head_dim), dtype),
            jax.ShapeDtypeStruct((batch, num_heads, tiles_per_head * block.TILE), jnp.float32) if return_lse else None,
        ),
        scratch_types=(
            q_tiles,
            compat.tiled_smem((stages, block_kv, head_dim), dtype),
            compat.tiled_smem((stages, block_kv, head_dim), dtype, v_swizzle),
            q_tiles,
            compat.SMEM((block.CONSUMERS, block.ROWS), jnp.float32) if return_lse else None,
            compat.SMEM((block.CONSUMERS, block.ROWS), jnp.int32) if plan.may_repeat else None,
            (
                compat.Barrier(num_barriers=block.CONSUMERS),
                compat.Barrier(num_barriers=stages),
                compat.Barrier(num_barriers=stages),
                compat.Barrier(num_arrivals=block.CONSUMERS, num_barriers=stages),
                compat.Barrier(num_arrivals=block.CONSUMERS, num_barriers=stages),
                compat.Barrier(num_arrivals=block.CONSUMERS) if plan.may_repeat else None,
            ),
        ),
        grid=(plan.num_blocks,),
        grid_names=("block",),
        num_threads=block.CONSUMERS + 1,
        thread_name="warpgroup",
        # Rows of a wgmma are reduced by shuffles inside a warp: no scratch memory.
        compiler_params=compat.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        kernel_name="attention",
        interpret=interpret,
    )(q, k, v, *biases)
    return out, None if lse is None else lse[:, :, :length]


def _biases(last_columns: int, block_kv: int, last_key_count: int, scale: float) -> list[Float[Array, " T"]]:
    """What is added to the scores of the first visited block; an empty list if nothing is.

    Args:
        last_columns: Keys of this block that exist.
        block_kv: Keys of a block.
        last_key_count: How many times the last of them counts.
        scale: Factor of the logits.
    """
    if last_columns == block_kv and last_key_count == 1:
        return []
    bias = np.where(np.arange(block_kv) < last_columns, 0, -np.inf)
    bias[last_columns - 1] = math.log(last_key_count) / scale
    # An operand rather than a comparison of column numbers in the kernel: the compiler would hoist the columns out of
    # all loops and keep them in registers, and two such masks spill.
    return [jnp.asarray(bias, jnp.float32)]
