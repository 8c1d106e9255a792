"""The body of the attention kernel. ``hopper.py`` explains the algorithm; (1) to (5) are its equations.

A *tile* is 128 queries of one head, a *step* one block of keys and values of a tile, a *slot* room for one block of
keys and one of values in shared memory. Steps are counted through all tiles of a thread block: count c uses slot
c mod stages, for the producer and for both consumers alike.
"""

import functools
import math
from collections.abc import Callable
from typing import cast

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels import compat
from pallas_kernels.attention import matmuls
from pallas_kernels.attention.block import CONSUMERS, ROWS, TILE, Block, Index, Memory, Plan
from pallas_kernels.compat import Ref, pl

_REGISTERS = {"consumer": 240, "producer": 24}
"""Registers of a thread. Three warpgroups of 128 threads share the 65536 registers of a multiprocessor."""

_LARGEST_SUM = 2.0**64
"""Limit of the sums (3) of a first attempt. Below it the products (4) stay finite for values up to 2^63."""

_BITS, _ALL_TILES = 32, -1
"""A set of tiles is a mask of 32 bits. Tile n has bit n mod 32; tiles that share a bit are redone together."""

_LANE_COLUMNS = 8
"""Columns after which the fragments of a wgmma repeat. Each of four lanes holds two of them."""

State = tuple[Float[Array, "64 K"], Float[Array, "64"], Float[Array, "64"], Float[Array, "64 T"]]
"""O, m and l of (1) to (5), and the weights P of the last block, which O does not contain yet."""


def run_block(plan: Plan, q_gmem: Ref, k_gmem: Ref, v_gmem: Ref, *refs: Ref) -> None:
    """The kernel: divides the warpgroups of a thread block into consumers and a producer."""
    *bias_gmem, out_gmem, lse_gmem, q_smem, k_smem, v_smem, out_smem, lse_smem, doubt_smem, barriers = refs
    q_full, k_full, v_full, k_free, v_free, judged = barriers
    memory = Memory(
        q_gmem=q_gmem,
        k_gmem=k_gmem,
        v_gmem=v_gmem,
        bias_gmem=bias_gmem[0] if bias_gmem else None,
        out_gmem=out_gmem,
        lse_gmem=lse_gmem,
        q_smem=q_smem,
        k_smem=k_smem,
        v_smem=v_smem,
        out_smem=out_smem,
        lse_smem=lse_smem,
        doubt_smem=doubt_smem,
        q_full=q_full,
        k_full=k_full,
        v_full=v_full,
        k_free=k_free,
        v_free=v_free,
        judged=judged,
    )
    warpgroup, number = lax.axis_index("warpgroup"), lax.axis_index("block")
    my_tiles = lax.div(plan.num_tiles - number + plan.num_blocks - 1, plan.num_blocks)
    block = Block(plan=plan, memory=memory, warpgroup=warpgroup, number=number, my_tiles=my_tiles)
    pl.when(warpgroup == CONSUMERS)(lambda: produce(block))
    pl.when(warpgroup < CONSUMERS)(lambda: consume(block))


def produce(block: Block) -> None:
    """The producer: loads the blocks of keys and values of all tiles, and of repeated tiles once more."""
    plan, memory = block.plan, block.memory
    # A producer computes nothing, so it leaves its registers to the consumers.
    compat.set_max_registers(_REGISTERS["producer"], action="decrease")

    def load_tile(n: Index, count: Index) -> None:
        pl.loop(0, plan.num_steps)(lambda step: _load_keys_and_values(block, n, step, count + step))

    pl.loop(0, block.my_tiles)(lambda n: load_tile(n, n * plan.num_steps))
    loaded = block.my_tiles * plan.num_steps
    if plan.may_repeat:
        doubtful = _doubtful_tiles(block)

        def load_again(n: Array, count: Array) -> Array:
            wanted = _contains(doubtful, n)
            pl.when(wanted)(lambda: load_tile(n, count))
            return jnp.where(wanted, count + plan.num_steps, count)

        loaded = lax.fori_loop(0, block.my_tiles, load_again, loaded)

    # Every arrival at a barrier must be waited for, also at the slots that are freed last and not refilled.
    @pl.loop(lax.max(loaded - plan.stages, 0), loaded)
    def _(count: Array) -> None:
        compat.barrier_wait(memory.k_free.at[block.slot(count)])
        compat.barrier_wait(memory.v_free.at[block.slot(count)])


def _load_keys_and_values(block: Block, n: Index, step: Index, count: Index) -> None:
    """Starts the copies of one block of keys and one of values into the slot of step ``count``."""
    plan, memory = block.plan, block.memory
    batch, head, _ = block.locate(n)
    # Backwards: the block with keys to mask comes first, and the first block is peeled off the loop anyway.
    rows = pl.ds((plan.num_steps - 1 - step) * plan.block_kv, plan.block_kv)
    slot = block.slot(count)
    for gmem, first, smem, full, free in (
        (memory.k_gmem, plan.first_heads[1], memory.k_smem, memory.k_full, memory.k_free),
        (memory.v_gmem, plan.first_heads[2], memory.v_smem, memory.v_full, memory.v_free),
    ):
        # No slot is freed before it has been filled once, so the first round must not wait.
        pl.when(count >= plan.stages)(lambda free=free: compat.barrier_wait(free.at[slot]))
        compat.copy_gmem_to_smem(gmem.at[batch, rows, first + head], smem.at[slot], full.at[slot])


def consume(block: Block) -> None:
    """A consumer: computes its 64 queries of every tile, and once more where a sum came out too large."""
    plan, memory = block.plan, block.memory
    compat.set_max_registers(_REGISTERS["consumer"], action="increase")
    _load_queries(block, 0)
    if plan.may_repeat:
        none = compat.layout_cast(jnp.zeros((ROWS,), jnp.int32), compat.Layout.WGMMA.reduce(1))
        memory.doubt_smem.at[block.warpgroup][...] = none
        # One loop for both attempts rather than two: the body is inlined once, which keeps the code half as long.
        lax.fori_loop(0, 2, functools.partial(_run_attempt, block), (jnp.int32(_ALL_TILES), jnp.int32(0)))
    else:
        pl.loop(0, block.my_tiles)(lambda n: _run_tile(block, n, n * plan.num_steps, 0))
    # Shared memory must live until TMA has read the last results from it.
    compat.wait_smem_to_gmem(0)


def _run_attempt(block: Block, attempt: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    """Computes a set of tiles; returns the tiles of the next attempt and the count of steps so far."""
    tiles, first_count = carry

    def run_if_wanted(n: Array, count: Array) -> Array:
        wanted = _contains(tiles, n)

        @pl.when(wanted)
        def _() -> None:
            # In the first attempt the previous tile has started this copy already.
            pl.when(attempt > 0)(lambda: _load_queries(block, n))
            _run_tile(block, n, count, attempt)

        return jnp.where(wanted, count + block.plan.num_steps, count)

    def find_next() -> Array:
        # The first result of a tile may still be on its way to global memory and must not overwrite the second.
        compat.wait_smem_to_gmem(0)
        compat.barrier_arrive(block.memory.judged)
        return _doubtful_tiles(block)

    count = lax.fori_loop(0, block.my_tiles, run_if_wanted, first_count)
    return lax.cond(attempt == 0, find_next, lambda: jnp.int32(0)), count


def _run_tile(block: Block, n: Index, first_count: Index, attempt: Index) -> None:
    """Computes and stores this consumer's half of tile ``n``, whose first step is number ``first_count``."""
    compat.barrier_wait(block.memory.q_full.at[block.warpgroup])
    o, m, total = _attend(block, n, first_count, attempt)
    if block.plan.may_repeat:
        pl.when(attempt == 0)(lambda: _judge(block, n, total))
    finish(block, n, o, m, total)


def _load_queries(block: Block, n: Index) -> None:
    """Starts the copy of this consumer's queries of tile ``n``.

    Each consumer loads its own, since only it knows when its last product has read the previous ones. With one barrier
    for both, the faster consumer would wait for the other.
    """
    memory, warpgroup = block.memory, block.warpgroup
    batch, head, start = block.locate(n)
    rows = pl.ds(start + warpgroup * ROWS, ROWS)
    source = memory.q_gmem.at[batch, rows, block.plan.first_heads[0] + head]
    compat.copy_gmem_to_smem(source, memory.q_smem.at[warpgroup], memory.q_full.at[warpgroup])


def _attend(
    block: Block, n: Index, first_count: Index, attempt: Index
) -> tuple[Float[Array, "64 K"], Float[Array, "64"], Float[Array, "64"]]:
    """(1) to (5) for one tile: O, m and l."""
    plan, memory = block.plan, block.memory

    def slot(step: Index) -> Array:
        return block.slot(first_count + step)

    compat.barrier_wait(memory.k_full.at[slot(0)])
    q_tile = memory.q_smem.at[block.warpgroup]
    s = matmuls.scores(q_tile, memory.k_smem.at[slot(0)], interpret=plan.interpreted)
    compat.barrier_arrive(memory.k_free.at[slot(0)])
    if memory.bias_gmem is not None:
        s = s + lax.broadcast_in_dim(_load_row(plan, memory.bias_gmem, 0), s.shape, [1])
    m = s.max(axis=1) * plan.log2_scale
    p = _exponentials(plan, s, m)
    o = compat.layout_cast(jnp.zeros((ROWS, plan.head_dim), jnp.float32), compat.Layout.WGMMA)
    state = o, m, _sum_in_lanes(p), p.astype(plan.dtype)
    with_running_max = functools.partial(_visit_with_running_max, block, slot)
    if plan.may_repeat:
        with_first_max = functools.partial(_visit_with_first_max, block, slot)
        o, m, total, p = lax.cond(attempt > 0, with_running_max, with_first_max, *state)
    else:
        o, m, total, p = with_running_max(*state)
    # All scores are computed, so the queries can be replaced while the last product and the stores are under way.
    pl.when((attempt == 0) & (n + 1 < block.my_tiles))(lambda: _load_queries(block, n + 1))
    compat.barrier_wait(memory.v_full.at[slot(plan.num_steps - 1)])
    o = matmuls.update(o, p, memory.v_smem.at[slot(plan.num_steps - 1)], interpret=plan.interpreted)
    compat.barrier_arrive(memory.v_free.at[slot(plan.num_steps - 1)])
    return o, m, total


# Both visits round P to the dtype of V only after the product that reads the previous P has ended. Rounded earlier, its
# registers would be written while that product is in flight, and ptxas would serialise every wgmma.


def _visit_with_first_max(
    block: Block,
    slot: Callable[[Index], Array],
    o: Float[Array, "64 K"],
    m: Float[Array, "64"],
    lane_sums: Float[Array, "64 8"],
    p: Float[Array, "64 T"],
) -> State:
    """(3) and (4) for the blocks after the first, with its maximum: no exchange between lanes until the end."""

    def visit(step: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        o, lane_sums, p = carry

        def softmax(s: Array) -> tuple[Array, Array]:
            p = _exponentials(block.plan, s, m)
            return p, _sum_in_lanes(p)

        o, (p, sums) = _advance(block, slot, step, o, p, softmax)
        return o, lane_sums + sums, p.astype(block.plan.dtype)

    o, lane_sums, p = lax.fori_loop(1, block.plan.num_steps, visit, (o, lane_sums, p))
    return o, m, lane_sums.sum(axis=1), p


def _visit_with_running_max(
    block: Block,
    slot: Callable[[Index], Array],
    o: Float[Array, "64 K"],
    m: Float[Array, "64"],
    lane_sums: Float[Array, "64 8"],
    p: Float[Array, "64 T"],
) -> State:
    """(3) to (5) for the blocks after the first: right for all inputs, and slower."""
    plan = block.plan

    def visit(step: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        o, m, total, p = carry

        def softmax(s: Array) -> tuple[Array, Array, Array]:
            m_next = lax.max(m, s.max(axis=1) * plan.log2_scale)
            p = _exponentials(plan, s, m_next)
            return m_next, p, p.sum(axis=1)

        o, (m_next, p, sums) = _advance(block, slot, step, o, p, softmax)
        # O is rescaled after both products: between them, ptxas would serialise every wgmma.
        alpha = jnp.exp2(m - m_next)
        return o * _spread(alpha, plan.head_dim), m_next, total * alpha + sums, p.astype(plan.dtype)

    return lax.fori_loop(1, plan.num_steps, visit, (o, m, lane_sums.sum(axis=1), p))


def _advance[T](
    block: Block,
    slot: Callable[[Index], Array],
    step: Index,
    o: Float[Array, "64 K"],
    p: Float[Array, "64 T"],
    softmax: Callable[[Array], T],
) -> tuple[Float[Array, "64 K"], T]:
    """O with the block before ``step`` added, and ``softmax`` of the scores of the block at ``step``.

    The products (1) of this block and (4) of the one before are in flight together, so that the tensor cores have work
    while the softmax starts on the scores.
    """
    memory = block.memory
    compat.barrier_wait(memory.k_full.at[slot(step)])

    def release_k_and_softmax(s: Array) -> T:
        # The scores are complete, so the keys have been read; the producer may replace them during the softmax.
        compat.barrier_arrive(memory.k_free.at[slot(step)])
        return softmax(s)

    o, softmaxed = matmuls.scores_and_update(
        memory.q_smem.at[block.warpgroup],
        memory.k_smem.at[slot(step)],
        o,
        p,
        memory.v_smem.at[slot(step - 1)],
        # Values are waited for only after (1) has been issued, which does not need them.
        before_update=lambda: compat.barrier_wait(memory.v_full.at[slot(step - 1)]),
        softmax=release_k_and_softmax,
        interpret=block.plan.interpreted,
    )
    compat.barrier_arrive(memory.v_free.at[slot(step - 1)])
    return o, softmaxed


def finish(block: Block, n: Index, o: Float[Array, "64 K"], m: Float[Array, "64"], total: Float[Array, "64"]) -> None:
    """Divides O by its sums and starts the copies of the results of tile ``n``."""
    plan, memory, warpgroup = block.plan, block.memory, block.warpgroup
    out_tile = memory.out_smem.at[warpgroup]
    # The results of the previous tile must have left shared memory, but need not have reached global memory.
    compat.wait_smem_to_gmem(0, wait_read_only=True)
    out_tile[...] = (o * _spread(1.0 / total, plan.head_dim)).astype(plan.dtype)
    if plan.return_lse:
        memory.lse_smem.at[warpgroup][...] = m * math.log(2) + jnp.log(total)
    # TMA reads through the async proxy, which sees what threads have stored only after this fence.
    compat.commit_smem()
    batch, head, start = block.locate(n)
    rows = pl.ds(start + warpgroup * ROWS, ROWS)
    compat.copy_smem_to_gmem(out_tile, memory.out_gmem.at[batch, rows, head])
    if plan.return_lse:
        compat.copy_smem_to_gmem(memory.lse_smem.at[warpgroup], memory.lse_gmem.at[batch, head, rows])


def _judge(block: Block, n: Index, total: Float[Array, "64"]) -> None:
    """Adds tile ``n`` to the doubtful tiles of the rows whose sum is too large or not a number."""
    # One mask per row: Mosaic's reductions over rows share their scratch memory among warpgroups.
    memory = block.memory
    doubtful = _load_row(block.plan, memory.doubt_smem.at[block.warpgroup], 1)
    more = doubtful | lax.shift_left(jnp.int32(1), n & (_BITS - 1))
    # "not smaller" rather than "larger", since no comparison with NaN is true.
    memory.doubt_smem.at[block.warpgroup][...] = jnp.where(total < _LARGEST_SUM, doubtful, more)


def _doubtful_tiles(block: Block) -> Int[Array, ""]:
    """The tiles in which a sum of either consumer was too large.

    Waits until both are done: all three warpgroups must repeat the same tiles, or their counts of steps would differ.
    """
    compat.barrier_wait(block.memory.judged)

    def add(row: Array, tiles: Array) -> Array:
        return tiles | block.memory.doubt_smem[lax.div(row, ROWS), lax.rem(row, ROWS)]

    return lax.fori_loop(0, TILE, add, jnp.int32(0))


def _contains(tiles: Int[Array, ""], n: Index) -> Array:
    """Whether a set of tiles contains tile ``n``, or one that shares its bit."""
    return lax.shift_right_logical(tiles, n & (_BITS - 1)) & 1 == 1


def _exponentials(plan: Plan, s: Float[Array, "64 T"], m: Float[Array, "64"]) -> Float[Array, "64 T"]:
    """The weights P of (3)."""
    return jnp.exp2(s * plan.log2_scale - _spread(m, plan.block_kv))


def _spread(row: Float[Array, "64"], columns: int) -> Float[Array, "64 T"]:
    """One number per query, repeated along the columns."""
    return lax.broadcast_in_dim(row, (ROWS, columns), [0])


def _load_row(plan: Plan, ref: Ref, reduced: int) -> Array:
    """Loads one axis in the layout that a reduction of a wgmma's result over axis ``reduced`` has."""
    layout = compat.Layout.WGMMA.reduce(reduced)
    return ref[...] if plan.interpreted else compat.load(ref, layout=layout, optimized=False)


def _sum_in_lanes(p: Float[Array, "64 T"]) -> Float[Array, "64 8"]:
    """Sums over the columns that a lane owns, without exchange between lanes."""
    parts = (p[:, start : start + _LANE_COLUMNS] for start in range(0, p.shape[1], _LANE_COLUMNS))
    return cast(Array, sum(parts))
