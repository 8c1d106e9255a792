"""Softmax attention on Hopper's tensor cores (sm_90a), after FlashAttention-3 (arXiv 2407.08608).

A thread block has three warpgroups. Two *consumers* own 64 queries each; the *producer* does nothing but issue
TMA copies of blocks of keys and values into a ring of slots in shared memory. With c = scale log2(e), a consumer
visits the key blocks j = T-1 .. 0:

    S_j = Q K_j^T                                                  (1)
    m   = c rowmax(S_(T-1)),        of the first block only        (2)
    P_j = 2^(c S_j - m),            l <- l + rowsum(P_j)           (3)
    O  <- O + P_j V_j                                              (4)

and ends with out = O / l and lse = m ln 2 + ln l. Going backwards makes the peeled first block the only one with
keys to mask. It also holds the key that may count n times: ln(n) / scale is added to its scores. A consumer issues (1)
of a block before (4) of the previous one, so that the tensor cores have work while it starts on the softmax; nothing
orders the two consumers, and they drift into opposite phases by themselves.

Softmax is the same for every m, so m needs not be the largest logit: nothing may overflow, that is all, and P may be
larger than one, since bf16 has the exponents of fp32. A maximum that runs along, as is usual, takes from every block a
maximum over all scores, its exchange between the lanes of a row and a rescaling of O, a third of all instructions
outside the tensor cores. Instead, when its tiles are done, a thread block looks at their sums. A tile with a sum that
has reached 2^64 (a score exceeds the largest of its row's first block by 40 or so) or is not a number is done again,
now with

    m  <- max(m, c rowmax(S_j)),    a = 2^(m_before - m),    l <- a l,    O <- a O      (5)

in front of (3). So are all tiles at once where P is fp16, whose exponents do not reach.

The grid is persistent: a thread block walks over tiles of 128 queries, and the next tile's queries, keys and values
are loaded while the last one is finished. A tile of queries that runs past the end needs no mask: TMA fills
with zeros what it reads out of bounds and skips what it would write there.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import compat
from pallas_kernels.attention import matmuls
from pallas_kernels.compat import pl
from pallas_kernels.lowering import lowered_once

_CONSUMERS = 2
_ROWS = 64
"""Queries of one consumer: the height of a wgmma."""

TILE = _CONSUMERS * _ROWS
"""Queries of one thread block."""

_REGISTERS = {"consumer": 240, "producer": 24}
"""Per thread; 65536 for the whole block."""

_LARGEST_SUM = 2.0**64
"""Of (3). Up to here the products of (4) with any values of size 2^63 stay finite."""

_BITS, _ALL_TILES = 32, -1
"""Of a set of tiles; of 32 tiles each has a bit of its own."""

_LANE_COLUMNS = 8
"""Columns of a row that the fragments of a wgmma repeat after, two in each of four lanes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Tile shapes of the kernel.

    Attributes:
        block_kv: Keys per block, a multiple of 32.
        stages: Slots for blocks of keys, and as many for values.
    """

    block_kv: int = 128
    stages: int = 2

    def __post_init__(self):
        if self.block_kv % 32 or not 32 <= self.block_kv <= 256:
            raise ValueError(f"block_kv must be a multiple of 32 in 32..256, got {self.block_kv}")
        if self.stages < 2:
            raise ValueError(f"stages must be at least 2, got {self.stages}")


_CONFIGS = (
    (1024, AttentionConfig(block_kv=160)),
    (257, AttentionConfig(block_kv=128)),
    (129, AttentionConfig(block_kv=96)),
    (1, AttentionConfig(block_kv=128)),
)
"""(Least number of keys, what measured fastest on an H200 from there on): README.md has the numbers. Exactly as many
blocks as slots, two, give every barrier an address of its own, and those find no register: hence 96."""


def choose_config(kv_length: int) -> AttentionConfig:
    """The tuned tile shapes."""
    return next(config for least, config in _CONFIGS if kv_length >= least)


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
    tiles_per_head = pl.cdiv(length, TILE)
    num_tiles = batch * num_heads * tiles_per_head
    num_steps = pl.cdiv(kv_length, block_kv)
    last_columns = kv_length - (num_steps - 1) * block_kv
    num_blocks = min(num_tiles, num_blocks or compat.multiprocessors())
    log2_scale = scale * math.log2(math.e)
    # With a single block of keys its maximum is the maximum of all.
    may_repeat = dtype == jnp.bfloat16 and num_steps > 1
    interpreted = interpret is not None

    def spread(row: jax.Array, columns: int) -> jax.Array:
        return lax.broadcast_in_dim(row, (_ROWS, columns), [0])

    def load_row(ref: compat.Ref, reduced: int) -> jax.Array:
        """An array of one axis as those that a reduction over axis ``reduced`` of a wgmma's result makes."""
        layout = compat.Layout.WGMMA.reduce(reduced)
        return ref[...] if interpreted else compat.load(ref, layout=layout, optimized=False)

    def body(q_gmem, k_gmem, v_gmem, *refs):
        *bias_gmem, out_gmem, lse_gmem, q_smem, k_smem, v_smem, out_smem, lse_smem, doubt_smem, barriers = refs
        q_full, k_full, v_full, k_free, v_free, judged = barriers
        warpgroup, block = lax.axis_index("warpgroup"), lax.axis_index("block")
        my_tiles = lax.div(num_tiles - block + num_blocks - 1, num_blocks)

        def locate(n):
            """Batch, head and first query of this block's tile ``n``."""
            tile = block + n * num_blocks
            row, tile = lax.div(tile, tiles_per_head), lax.rem(tile, tiles_per_head)
            return lax.div(row, num_heads), lax.rem(row, num_heads), tile * TILE

        def is_in(n, tiles):
            """Whether a set of tiles, given by bits, has tile ``n``, or one that shares its bit."""
            return lax.shift_right_logical(tiles, n & (_BITS - 1)) & 1 == 1

        def find_doubtful():
            """The tiles in which a sum of either consumer was too large; waits until both are done."""
            compat.barrier_wait(judged)

            def add(row, tiles):
                return tiles | doubt_smem[lax.div(row, _ROWS), lax.rem(row, _ROWS)]

            return lax.fori_loop(0, TILE, add, jnp.int32(0))

        @pl.when(warpgroup == _CONSUMERS)
        def produce():
            compat.set_max_registers(_REGISTERS["producer"], action="decrease")

            def load(count, n, step):
                batch, head, _ = locate(n)
                rows = pl.ds((num_steps - 1 - step) * block_kv, block_kv)
                slot = lax.rem(count, stages)
                for gmem, first, smem, full, free in (
                    (k_gmem, first_heads[1], k_smem, k_full, k_free),
                    (v_gmem, first_heads[2], v_smem, v_full, v_free),
                ):
                    pl.when(count >= stages)(lambda free=free: compat.barrier_wait(free.at[slot]))
                    compat.copy_gmem_to_smem(gmem.at[batch, rows, first + head], smem.at[slot], full.at[slot])

            def load_tile(n, count):
                pl.loop(0, num_steps)(lambda step: load(count + step, n, step))

            pl.loop(0, my_tiles)(lambda n: load_tile(n, n * num_steps))
            loaded = my_tiles * num_steps
            if may_repeat:
                doubtful = find_doubtful()

                def load_again(n, count):
                    wanted = is_in(n, doubtful)
                    pl.when(wanted)(lambda: load_tile(n, count))
                    return jnp.where(wanted, count + num_steps, count)

                loaded = lax.fori_loop(0, my_tiles, load_again, loaded)

            # Leave no arrival of a consumer unobserved.
            @pl.loop(lax.max(loaded - stages, 0), loaded)
            def _(count):
                compat.barrier_wait(k_free.at[lax.rem(count, stages)])
                compat.barrier_wait(v_free.at[lax.rem(count, stages)])

        @pl.when(warpgroup < _CONSUMERS)
        def consume():
            compat.set_max_registers(_REGISTERS["consumer"], action="increase")
            q_tile, out_tile = q_smem.at[warpgroup], out_smem.at[warpgroup]

            def load_q(n):
                batch, head, start = locate(n)
                rows = pl.ds(start + warpgroup * _ROWS, _ROWS)
                source = q_gmem.at[batch, rows, first_heads[0] + head]
                compat.copy_gmem_to_smem(source, q_tile, q_full.at[warpgroup])

            def attend(n, first_count, attempt):
                """(1) to (5) for one tile: (O, m, l)."""

                def slot(step):
                    return lax.rem(first_count + step, stages)

                def exponentials(s, m):
                    return jnp.exp2(s * log2_scale - spread(m, block_kv))

                def advance(step, o, p, softmax):
                    """O with the block before ``step``, and ``softmax`` of the scores of the block at ``step``."""
                    compat.barrier_wait(k_full.at[slot(step)])

                    def release_k_and_softmax(s):
                        compat.barrier_arrive(k_free.at[slot(step)])
                        return softmax(s)

                    o, softmaxed = matmuls.scores_and_update(
                        q_tile,
                        k_smem.at[slot(step)],
                        o,
                        p,
                        v_smem.at[slot(step - 1)],
                        before_update=lambda: compat.barrier_wait(v_full.at[slot(step - 1)]),
                        softmax=release_k_and_softmax,
                        interpret=interpreted,
                    )
                    compat.barrier_arrive(v_free.at[slot(step - 1)])
                    return o, softmaxed

                # P is rounded only when the product that reads its registers has ended.
                def visit_with_first_max(o, m, lane_sums, p):
                    def visit(step, carry):
                        o, lane_sums, p = carry

                        def softmax(s):
                            p = exponentials(s, m)
                            return p, _sum_in_lanes(p)

                        o, (p, sums) = advance(step, o, p, softmax)
                        return o, lane_sums + sums, p.astype(dtype)

                    o, lane_sums, p = lax.fori_loop(1, num_steps, visit, (o, lane_sums, p))
                    return o, m, lane_sums.sum(axis=1), p

                def visit_with_running_max(o, m, lane_sums, p):
                    def visit(step, carry):
                        o, m, total, p = carry

                        def softmax(s):
                            m_next = lax.max(m, s.max(axis=1) * log2_scale)
                            p = exponentials(s, m_next)
                            return m_next, p, p.sum(axis=1)

                        o, (m_next, p, sums) = advance(step, o, p, softmax)
                        alpha = jnp.exp2(m - m_next)
                        return o * spread(alpha, head_dim), m_next, total * alpha + sums, p.astype(dtype)

                    return lax.fori_loop(1, num_steps, visit, (o, m, lane_sums.sum(axis=1), p))

                compat.barrier_wait(k_full.at[slot(0)])
                s = matmuls.scores(q_tile, k_smem.at[slot(0)], interpret=interpreted)
                compat.barrier_arrive(k_free.at[slot(0)])
                if bias_gmem:
                    s = s + lax.broadcast_in_dim(load_row(*bias_gmem, 0), s.shape, [1])
                m = s.max(axis=1) * log2_scale
                p = exponentials(s, m)
                o = compat.layout_cast(jnp.zeros((_ROWS, head_dim), jnp.float32), compat.Layout.WGMMA)
                state = o, m, _sum_in_lanes(p), p.astype(dtype)
                if may_repeat:
                    state = lax.cond(attempt > 0, visit_with_running_max, visit_with_first_max, *state)
                else:
                    state = visit_with_running_max(*state)
                o, m, total, p = state
                pl.when((attempt == 0) & (n + 1 < my_tiles))(lambda: load_q(n + 1))
                compat.barrier_wait(v_full.at[slot(num_steps - 1)])
                o = matmuls.update(o, p, v_smem.at[slot(num_steps - 1)], interpret=interpreted)
                compat.barrier_arrive(v_free.at[slot(num_steps - 1)])
                return o, m, total

            def judge(n, total):
                """Remembers where sums are too large; one that is not a number is not smaller either."""
                # Row by row: Mosaic's sums over all rows share their scratch memory among warpgroups.
                doubtful = load_row(doubt_smem.at[warpgroup], 1)
                more = doubtful | lax.shift_left(jnp.int32(1), n & (_BITS - 1))
                doubt_smem.at[warpgroup][...] = jnp.where(total < _LARGEST_SUM, doubtful, more)

            def run_tile(n, first_count, attempt):
                compat.barrier_wait(q_full.at[warpgroup])
                o, m, total = attend(n, first_count, attempt)
                if may_repeat:
                    pl.when(attempt == 0)(lambda: judge(n, total))
                compat.wait_smem_to_gmem(0, wait_read_only=True)
                out_tile[...] = (o * spread(1.0 / total, head_dim)).astype(dtype)
                if return_lse:
                    lse_smem.at[warpgroup][...] = m * math.log(2) + jnp.log(total)
                compat.commit_smem()
                batch, head, start = locate(n)
                rows = pl.ds(start + warpgroup * _ROWS, _ROWS)
                compat.copy_smem_to_gmem(out_tile, out_gmem.at[batch, rows, head])
                if return_lse:
                    compat.copy_smem_to_gmem(lse_smem.at[warpgroup], lse_gmem.at[batch, head, rows])

            def run_tiles(attempt, carry):
                tiles, first_count = carry

                def run_if_wanted(n, count):
                    wanted = is_in(n, tiles)

                    @pl.when(wanted)
                    def _():
                        pl.when(attempt > 0)(lambda: load_q(n))
                        run_tile(n, count, attempt)

                    return jnp.where(wanted, count + num_steps, count)

                def find_next():
                    # What is written again must not be overtaken by what was written first.
                    compat.wait_smem_to_gmem(0)
                    compat.barrier_arrive(judged)
                    return find_doubtful()

                count = lax.fori_loop(0, my_tiles, run_if_wanted, first_count)
                return lax.cond(attempt == 0, find_next, lambda: jnp.int32(0)), count

            load_q(0)
            if may_repeat:
                none = compat.layout_cast(jnp.zeros((_ROWS,), jnp.int32), compat.Layout.WGMMA.reduce(1))
                doubt_smem.at[warpgroup][...] = none
                lax.fori_loop(0, 2, run_tiles, (jnp.int32(_ALL_TILES), jnp.int32(0)))
            else:
                pl.loop(0, my_tiles)(lambda n: run_tile(n, n * num_steps, 0))
            compat.wait_smem_to_gmem(0)

    # Of the first block that is visited: of keys that do not exist, and of the one that counts several times. Read from
    # memory, since columns compared with constants would be kept in registers throughout.
    biases = []
    if last_columns < block_kv or last_key_count > 1:
        bias = np.where(np.arange(block_kv) < last_columns, 0, -np.inf)
        bias[last_columns - 1] = math.log(last_key_count) / scale
        biases.append(jnp.asarray(bias, jnp.float32))

    # In (4) a wgmma contracts swizzle / itemsize keys at a time, which must divide the block.
    v_swizzle = 128 if block_kv % 64 == 0 else 64
    q_tiles = compat.tiled_smem((_CONSUMERS, _ROWS, head_dim), dtype)
    out, lse = compat.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct((batch, length, num_heads, head_dim), dtype),
            jax.ShapeDtypeStruct((batch, num_heads, tiles_per_head * TILE), jnp.float32) if return_lse else None,
        ),
        scratch_types=(
            q_tiles,
            compat.tiled_smem((stages, block_kv, head_dim), dtype),
            compat.tiled_smem((stages, block_kv, head_dim), dtype, v_swizzle),
            q_tiles,
            compat.SMEM((_CONSUMERS, _ROWS), jnp.float32) if return_lse else None,
            compat.SMEM((_CONSUMERS, _ROWS), jnp.int32) if may_repeat else None,
            (
                compat.Barrier(num_barriers=_CONSUMERS),
                compat.Barrier(num_barriers=stages),
                compat.Barrier(num_barriers=stages),
                compat.Barrier(num_arrivals=_CONSUMERS, num_barriers=stages),
                compat.Barrier(num_arrivals=_CONSUMERS, num_barriers=stages),
                compat.Barrier(num_arrivals=_CONSUMERS) if may_repeat else None,
            ),
        ),
        grid=(num_blocks,),
        grid_names=("block",),
        num_threads=_CONSUMERS + 1,
        thread_name="warpgroup",
        # Rows of a wgmma are reduced by shuffles inside a warp: no scratch memory.
        compiler_params=compat.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        kernel_name="attention",
        interpret=interpret,
    )(q, k, v, *biases)
    return out, None if lse is None else lse[:, :, :length]


def _sum_in_lanes(p: Float[Array, "S K"]) -> Float[Array, "S 8"]:
    """Sums over the columns that a lane owns, without exchange between lanes."""
    return sum(p[:, start : start + _LANE_COLUMNS] for start in range(0, p.shape[1], _LANE_COLUMNS))
