"""Softmax attention on Hopper's tensor cores (sm_90a), after FlashAttention-3 (arXiv 2407.08608).

A thread block has three warpgroups. Two *consumers* own 64 queries each; the *producer* does nothing but issue
TMA copies of blocks of keys and values into a ring of slots in shared memory. With c = scale log2(e), a consumer
visits the key blocks j = T-1 .. 0:

    S_j = Q K_j^T                                                  (1)
    m  <- max(m, c rowmax(S_j)),      a = 2^(m_before - m)         (2)
    P_j = 2^(c S_j - m),              l <- a l + rowsum(P_j)       (3)
    O  <- a O + P_j V_j                                            (4)

and ends with out = O / l and lse = m ln 2 + ln l. Going backwards makes the peeled first block the only one with
keys to mask. It also holds the key that may count n times: ln(n) / scale is added to its scores. A consumer issues (1)
of a block before (4) of the previous one, so that the tensor cores have work while it starts on the softmax; nothing
orders the two consumers, and they drift into opposite phases by themselves.

The grid is persistent: a thread block walks over tiles of 128 queries, and the next tile's queries, keys and values
are loaded while the last one is finished. A tile of queries that runs past the end needs no mask: TMA fills
with zeros what it reads out of bounds and skips what it would write there.

Where the tiles leave a last round that occupies less than half of the grid, those of that round are split over the
keys, if they are of one head and no block of keys needs a mask. Each part ends with an output O_i and log-sum-exp l_i
of its own, which are merged after the kernel:

    out = sum_i exp(l_i - lse) O_i,   lse = ln sum_i exp(l_i)      (5)
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import compat
from pallas_kernels.attention import matmuls
from pallas_kernels.compat import pl

_CONSUMERS = 2
_ROWS = 64
"""Queries of one consumer: the height of a wgmma."""

TILE = _CONSUMERS * _ROWS
"""Queries of one thread block."""

_REGISTERS = {"consumer": 240, "producer": 24}
"""Per thread; 65536 for the whole block."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Tile shapes of the kernel.

    Attributes:
        block_kv: Keys per block, a multiple of 32.
        stages: Slots for blocks of keys, and as many for values.
        least_part: Fewest blocks of keys in each part of a tile that is split.
    """

    block_kv: int = 128
    stages: int = 2
    least_part: int = 16

    def __post_init__(self):
        if self.block_kv % 32 or not 32 <= self.block_kv <= 256:
            raise ValueError(f"block_kv must be a multiple of 32 in 32..256, got {self.block_kv}")
        if self.stages < 2:
            raise ValueError(f"stages must be at least 2, got {self.stages}")


_CONFIGS = (
    (4096, AttentionConfig(block_kv=160)),
    (257, AttentionConfig(block_kv=128)),
    (129, AttentionConfig(block_kv=96)),
    (1, AttentionConfig(block_kv=128)),
)
"""(Least number of keys, what measured fastest on an H200 from there on): README.md has the numbers. Exactly as many
blocks as slots, two, give every barrier an address of its own, and those find no register: hence 96."""


def choose_config(kv_length: int) -> AttentionConfig:
    """The tuned tile shapes."""
    return next(config for least, config in _CONFIGS if kv_length >= least)


@dataclasses.dataclass(frozen=True)
class _Split:
    """The tiles of the last round, all of the last head: how many, and in how many parts each."""

    tiles: int
    parts: int


def _choose_split(num_tiles: int, tiles_per_head: int, num_blocks: int, num_steps: int, least: int) -> _Split:
    tiles = num_tiles % num_blocks
    parts = min(num_blocks // tiles, num_steps // least) if 0 < tiles <= tiles_per_head else 1
    return _Split(tiles, parts) if parts > 1 else _Split(0, 1)


@compat.lowered_once(
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
    num_blocks = num_blocks or compat.multiprocessors()
    num_steps = pl.cdiv(kv_length, block_kv)
    last_columns = kv_length - (num_steps - 1) * block_kv
    whole_blocks = last_columns == block_kv and last_key_count == 1
    split = _Split(0, 1)
    if whole_blocks:
        split = _choose_split(num_tiles, tiles_per_head, num_blocks, num_steps, config.least_part)
    whole_tiles = num_tiles - split.tiles
    num_items = whole_tiles + split.tiles * split.parts
    num_blocks = min(num_items, num_blocks)
    log2_scale = scale * math.log2(math.e)
    interpreted = interpret is not None

    def spread(row: jax.Array, columns: int) -> jax.Array:
        return lax.broadcast_in_dim(row, (_ROWS, columns), [0])

    def body(q_gmem, k_gmem, v_gmem, out_gmem, lse_gmem, parts_gmem, part_lse_gmem, *scratch):
        q_smem, k_smem, v_smem, out_smem, lse_smem, (q_full, k_full, v_full, k_free, v_free) = scratch
        warpgroup, block = lax.axis_index("warpgroup"), lax.axis_index("block")
        my_tiles = lax.div(num_items - block + num_blocks - 1, num_blocks)

        def find_part(n):
            """Whether this block's tile ``n`` is split, which of the split tiles it is, and which part of it."""
            item = block + n * num_blocks - whole_tiles
            return item >= 0, lax.div(item, split.parts), lax.rem(item, split.parts)

        def locate(n):
            """Batch, head and first query of this block's tile ``n``."""
            tile = block + n * num_blocks
            if split.tiles:
                is_part, split_tile, _ = find_part(n)
                tile = jnp.where(is_part, whole_tiles + split_tile, tile)
            row, tile = lax.div(tile, tiles_per_head), lax.rem(tile, tiles_per_head)
            return lax.div(row, num_heads), lax.rem(row, num_heads), tile * TILE

        def find_steps(n):
            """The first of the tile's blocks of keys, counted from the last key, and their number."""
            if not split.tiles:
                return 0, num_steps
            is_part, _, part = find_part(n)
            begin, end = (lax.div(p * num_steps, split.parts) for p in (part, part + 1))
            return jnp.where(is_part, begin, 0), jnp.where(is_part, end - begin, num_steps)

        @pl.when(warpgroup == _CONSUMERS)
        def produce():
            compat.set_max_registers(_REGISTERS["producer"], action="decrease")

            def load(n, begin, step):
                batch, head, _ = locate(n)
                rows = pl.ds((num_steps - 1 - begin - step) * block_kv, block_kv)
                count = n * num_steps + step
                slot = lax.rem(count, stages)
                for gmem, first, smem, full, free in (
                    (k_gmem, first_heads[1], k_smem, k_full, k_free),
                    (v_gmem, first_heads[2], v_smem, v_full, v_free),
                ):
                    pl.when(count >= stages)(lambda free=free: compat.barrier_wait(free.at[slot]))
                    compat.copy_gmem_to_smem(gmem.at[batch, rows, first + head], smem.at[slot], full.at[slot])

            @pl.loop(0, my_tiles)
            def _(n):
                begin, steps = find_steps(n)
                pl.loop(0, steps)(lambda step: load(n, begin, step))

            # Leave no arrival of a consumer unobserved. Only a block's last tile can be a part.
            loaded = (my_tiles - 1) * num_steps + find_steps(my_tiles - 1)[1]

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

            def attend(n):
                """(1) to (4) for one tile: (O, m, l)."""
                first_slot = n * num_steps
                _, steps = find_steps(n)

                def slot(step):
                    return lax.rem(first_slot + step, stages)

                def softmax(s, m):
                    m_next = lax.max(m, s.max(axis=1) * log2_scale)
                    p = jnp.exp2(s * log2_scale - spread(m_next, block_kv))
                    return p, m_next, p.sum(axis=1)

                compat.barrier_wait(k_full.at[slot(0)])
                s = matmuls.scores(q_tile, k_smem.at[slot(0)], interpret=interpreted)
                compat.barrier_arrive(k_free.at[slot(0)])
                column = compat.broadcasted_iota(jnp.int32, s.shape, 1, layout=compat.Layout.WGMMA)
                if last_key_count > 1:
                    s = jnp.where(column == last_columns - 1, s + math.log(last_key_count) / scale, s)
                if last_columns < block_kv:
                    s = jnp.where(column < last_columns, s, -jnp.inf)
                p, m, total = softmax(
                    s, compat.layout_cast(jnp.full((_ROWS,), -jnp.inf), compat.Layout.WGMMA.reduce(1))
                )
                p = p.astype(dtype)
                o = compat.layout_cast(jnp.zeros((_ROWS, head_dim), jnp.float32), compat.Layout.WGMMA)

                def advance(step, carry):
                    o, m, total, p = carry
                    compat.barrier_wait(k_full.at[slot(step)])

                    def release_k_and_softmax(s):
                        compat.barrier_arrive(k_free.at[slot(step)])
                        return softmax(s, m)

                    o, (p, m_next, p_sum) = matmuls.scores_and_update(
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
                    alpha = jnp.exp2(m - m_next)
                    # P is rounded only now: its registers are an operand of the product that has just ended.
                    return o * spread(alpha, head_dim), m_next, total * alpha + p_sum, p.astype(dtype)

                o, m, total, p = lax.fori_loop(1, steps, advance, (o, m, total, p))
                pl.when(n + 1 < my_tiles)(lambda: load_q(n + 1))
                compat.barrier_wait(v_full.at[slot(steps - 1)])
                o = matmuls.update(o, p, v_smem.at[slot(steps - 1)], interpret=interpreted)
                compat.barrier_arrive(v_free.at[slot(steps - 1)])
                return o, m, total

            load_q(0)

            @pl.loop(0, my_tiles)
            def _(n):
                compat.barrier_wait(q_full.at[warpgroup])
                o, m, total = attend(n)
                compat.wait_smem_to_gmem(0, wait_read_only=True)
                out_tile[...] = (o * spread(1.0 / total, head_dim)).astype(dtype)
                if lse_smem is not None:
                    lse_smem.at[warpgroup][...] = m * math.log(2) + jnp.log(total)
                compat.commit_smem()

                def write_tile():
                    batch, head, start = locate(n)
                    rows = pl.ds(start + warpgroup * _ROWS, _ROWS)
                    compat.copy_smem_to_gmem(out_tile, out_gmem.at[batch, rows, head])
                    if return_lse:
                        compat.copy_smem_to_gmem(lse_smem.at[warpgroup], lse_gmem.at[batch, head, rows])

                def write_part():
                    _, tile, part = find_part(n)
                    rows = pl.ds(warpgroup * _ROWS, _ROWS)
                    compat.copy_smem_to_gmem(out_tile, parts_gmem.at[tile, part, rows])
                    compat.copy_smem_to_gmem(lse_smem.at[warpgroup], part_lse_gmem.at[tile, part, rows])

                if split.tiles:
                    lax.cond(find_part(n)[0], write_part, write_tile)
                else:
                    write_tile()

            compat.wait_smem_to_gmem(0)

    # In (4) a wgmma contracts swizzle / itemsize keys at a time, which must divide the block.
    v_swizzle = 128 if block_kv % 64 == 0 else 64
    q_tiles = compat.tiled_smem((_CONSUMERS, _ROWS, head_dim), dtype)
    part_rows = (split.tiles, split.parts, TILE)
    out, lse, parts, part_lse = compat.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct((batch, length, num_heads, head_dim), dtype),
            jax.ShapeDtypeStruct((batch, num_heads, tiles_per_head * TILE), jnp.float32) if return_lse else None,
            jax.ShapeDtypeStruct((*part_rows, head_dim), dtype) if split.tiles else None,
            jax.ShapeDtypeStruct(part_rows, jnp.float32) if split.tiles else None,
        ),
        scratch_types=(
            q_tiles,
            compat.tiled_smem((stages, block_kv, head_dim), dtype),
            compat.tiled_smem((stages, block_kv, head_dim), dtype, v_swizzle),
            q_tiles,
            compat.SMEM((_CONSUMERS, _ROWS), jnp.float32) if return_lse or split.tiles else None,
            (
                compat.Barrier(num_barriers=_CONSUMERS),
                compat.Barrier(num_barriers=stages),
                compat.Barrier(num_barriers=stages),
                compat.Barrier(num_arrivals=_CONSUMERS, num_barriers=stages),
                compat.Barrier(num_arrivals=_CONSUMERS, num_barriers=stages),
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
    )(q, k, v)
    if split.tiles:
        start = (tiles_per_head - split.tiles) * TILE
        rows, row_lse = _merge(parts, part_lse, length - start)
        out = out.at[-1, start:, -1].set(rows)
        lse = None if lse is None else lse.at[-1, -1, start:length].set(row_lse)
    return out, None if lse is None else lse[:, :, :length]


def _merge(
    parts: Float[Array, "tiles parts rows K"], part_lse: Float[Array, "tiles parts rows"], length: int
) -> tuple[Float[Array, "length K"], Float[Array, " length"]]:
    """Equation (5)."""
    lse = jax.nn.logsumexp(part_lse, axis=1)
    out = jnp.sum(jnp.exp(part_lse - lse[:, None])[..., None] * parts.astype(jnp.float32), axis=1).astype(parts.dtype)
    return out.reshape(-1, parts.shape[-1])[:length], lse.reshape(-1)[:length]
