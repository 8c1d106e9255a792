"""The body of the linear kernel.

A *tile* is the part of the result that a thread block computes at a time, a *step* one slice of its contraction, a
*slot* room for one slice of x and one of the weights in shared memory. Steps are counted through all tiles of a thread
block: count c uses slot c mod stages, for the producer and for both consumers alike.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import compat
from pallas_kernels.compat import Ref, pl
from pallas_kernels.linear.config import CONSUMERS, LinearConfig

_REGISTERS = {"consumer": 232, "producer": 40}
"""Registers of a thread. Three warpgroups of 128 threads share the 65536 registers of a multiprocessor."""

DEPTH = 64
"""Length of a slice along the contraction: 128 bytes of bf16, the widest row that swizzled memory has."""

Index = Array | int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything about a call that is known when the kernel is traced.

    Attributes:
        config: Tile shapes.
        activation: ``"gelu"`` or ``None``.
        transposed: Whether the weights are [out, in].
        dtype: Type of the operands and the result.
        out_features: Columns of the result.
        grid: Tiles of the result, down and across.
        band: Tiles that a band of the snake is high.
        num_tiles: Tiles of the result.
        num_blocks: Thread blocks.
        steps: Slices of the contraction.
        interpreted: Whether the kernel runs in the interpreter.
    """

    config: LinearConfig
    activation: str | None
    transposed: bool
    dtype: Any
    out_features: int
    grid: tuple[int, int]
    band: int
    num_tiles: int
    num_blocks: int
    steps: int
    interpreted: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One thread block as each of its warpgroups sees it.

    Attributes:
        plan: What is the same for all thread blocks.
        warpgroup: Number of the warpgroup; the last one is the producer.
        number: Number of the thread block.
        my_tiles: How many tiles it computes: those of its number, then every ``num_blocks``-th.
        x_gmem: Rows, in global memory.
        kernel_gmem: Weights.
        bias_gmem: One number per output, or ``None``.
        out_gmem: Result.
        x_smem: Slots for slices of the rows, in shared memory.
        kernel_smem: Slots for slices of the weights.
        out_smem: Results of each consumer on their way to global memory.
        full: A barrier per slot, completed by TMA when both slices have arrived.
        free: A barrier per slot, completed by both consumers when they have read it.
    """

    plan: Plan
    warpgroup: Array
    number: Array
    my_tiles: Array
    x_gmem: Ref
    kernel_gmem: Ref
    bias_gmem: Ref
    out_gmem: Ref
    x_smem: Ref
    kernel_smem: Ref
    out_smem: Ref
    full: Ref
    free: Ref

    def locate(self, n: Index) -> tuple[Array, Array]:
        """First row and column of this block's tile ``n``."""
        plan = self.plan
        row, column = compat.planar_snake(self.number + n * plan.num_blocks, plan.grid, 0, plan.band)
        return row * plan.config.block[0], column * plan.config.block[1]

    def slot(self, count: Index) -> Array:
        """The slot of step number ``count`` of this block."""
        return lax.rem(count, self.plan.config.stages)


def run_block(plan: Plan, *refs: Ref) -> None:
    """The kernel: divides the warpgroups of a thread block into consumers and a producer."""
    x_gmem, kernel_gmem, *bias_gmem, out_gmem, x_smem, kernel_smem, out_smem, full, free = refs
    warpgroup, number = lax.axis_index("warpgroup"), lax.axis_index("block")
    block = Block(
        plan=plan,
        warpgroup=warpgroup,
        number=number,
        my_tiles=lax.div(plan.num_tiles - number + plan.num_blocks - 1, plan.num_blocks),
        x_gmem=x_gmem,
        kernel_gmem=kernel_gmem,
        bias_gmem=bias_gmem[0] if bias_gmem else None,
        out_gmem=out_gmem,
        x_smem=x_smem,
        kernel_smem=kernel_smem,
        out_smem=out_smem,
        full=full,
        free=free,
    )
    pl.when(warpgroup == CONSUMERS)(lambda: produce(block))
    pl.when(warpgroup < CONSUMERS)(lambda: consume(block))


def produce(block: Block) -> None:
    """The producer: loads the slices of all tiles."""
    plan = block.plan
    # A producer computes nothing, so it leaves its registers to the consumers.
    compat.set_max_registers(_REGISTERS["producer"], action="decrease")

    @pl.loop(0, block.my_tiles)
    def _(n: Array) -> None:
        pl.loop(0, plan.steps)(lambda step: _load_slices(block, n, step))

    # Every arrival at a barrier must be waited for, also at the slots that are freed last and not refilled.
    @pl.loop(lax.max(block.my_tiles * plan.steps - plan.config.stages, 0), block.my_tiles * plan.steps)
    def _(count: Array) -> None:
        compat.barrier_wait(block.free.at[block.slot(count)])


def _load_slices(block: Block, n: Index, step: Index) -> None:
    """Starts the copies of one slice of x and one of the weights; both complete the same barrier."""
    config = block.plan.config
    row, column = block.locate(n)
    count = n * block.plan.steps + step
    slot = block.slot(count)
    along, across = pl.ds(step * DEPTH, DEPTH), pl.ds(column, config.block[1])
    # No slot is freed before it has been filled once, so the first round must not wait.
    pl.when(count >= config.stages)(lambda: compat.barrier_wait(block.free.at[slot]))
    rows = pl.ds(row, config.block[0])
    compat.copy_gmem_to_smem(block.x_gmem.at[rows, along], block.x_smem.at[slot], block.full.at[slot])
    source = block.kernel_gmem.at[across, along] if block.plan.transposed else block.kernel_gmem.at[along, across]
    compat.copy_gmem_to_smem(source, block.kernel_smem.at[slot], block.full.at[slot])


def consume(block: Block) -> None:
    """A consumer: computes its rows or its columns of every tile."""
    config = block.plan.config
    compat.set_max_registers(_REGISTERS["consumer"], action="increase")
    first_row = block.warpgroup * config.rows if config.split == "rows" else 0
    first_column = 0 if config.split == "rows" else block.warpgroup * config.columns

    @pl.loop(0, block.my_tiles)
    def _(n: Array) -> None:
        total = _product(block, n, first_row, first_column)
        row, column = block.locate(n)
        finish(block, row + first_row, column + first_column, total)

    # Shared memory must live until TMA has read the last results from it.
    compat.wait_smem_to_gmem(0)


def _product(block: Block, n: Index, first_row: Index, first_column: Index) -> Float[Array, "R C"]:
    """This consumer's part of x W for tile ``n``, in fp32."""
    plan, config = block.plan, block.plan.config
    first = n * plan.steps
    my_rows, my_columns = pl.ds(first_row, config.rows), pl.ds(first_column, config.columns)

    def operands(slot: Array) -> tuple[Ref, Ref]:
        left = block.x_smem.at[slot, my_rows]
        if plan.transposed:
            return left, block.kernel_smem.at[slot, my_columns].transpose((1, 0))
        return left, block.kernel_smem.at[slot, :, my_columns]

    def slot(step: Index) -> Array:
        return block.slot(first + step)

    def advance(step: Index, multiply: Callable[[Ref, Ref], None]) -> None:
        compat.barrier_wait(block.full.at[slot(step)])
        multiply(*operands(slot(step)))
        # One product stays in flight, so that the tensor cores never wait for this thread. The one before has ended and
        # no longer reads its slot.
        pl.when(step > 0)(lambda: compat.barrier_arrive(block.free.at[slot(step - 1)]))

    total = _accumulate(advance, plan.steps, (config.rows, config.columns), interpret=plan.interpreted)
    compat.barrier_arrive(block.free.at[slot(plan.steps - 1)])
    return total


def finish(block: Block, row: Index, column: Index, total: Float[Array, "R C"]) -> None:
    """Adds the bias, applies the activation and starts the copies of a consumer's results, some columns at a time.

    Args:
        block: The thread block.
        row: First row of the results.
        column: First column of the results.
        total: The product.
    """
    plan, chunk = block.plan, block.plan.config.chunk
    for part in range(plan.config.columns // chunk):
        start = part * chunk
        y = total[:, start : start + chunk]
        if block.bias_gmem is not None:
            # A tile past the end stores nothing, but reads a bias: the last one that exists.
            first = lax.min(column + start, plan.out_features - chunk)
            y = y + _columns_of(block.bias_gmem, first, (plan.config.rows, chunk), plan.interpreted)
        y = _gelu(y) if plan.activation == "gelu" else y
        # The previous chunk must have left shared memory, but need not have reached global memory.
        compat.wait_smem_to_gmem(0, wait_read_only=True)
        block.out_smem.at[block.warpgroup][...] = y.astype(plan.dtype)
        # TMA reads through the async proxy, which sees what threads have stored only after this fence.
        compat.commit_smem()
        across = pl.ds(column + start, chunk)
        target = block.out_gmem.at[pl.ds(row, plan.config.rows), across]
        compat.copy_smem_to_gmem(block.out_smem.at[block.warpgroup], target)


def _accumulate(
    advance: Callable[[Index, Callable[[Ref, Ref], None]], None],
    steps: int,
    shape: tuple[int, int],
    *,
    interpret: bool,
) -> Float[Array, "R C"]:
    """The sum in fp32 of the products that ``advance(step, multiply)`` passes to ``multiply``, one per step.

    Pallas' GPU interpreter has no accumulators; there the sum is a value.
    """
    if interpret:

        def step_by_value(step: Array, total: Array) -> Array:
            products = []

            def multiply(a: Ref, b: Ref) -> None:
                products.append(jnp.dot(_read(a), _read(b), preferred_element_type=jnp.float32))

            advance(step, multiply)
            return total + products[0]

        return lax.fori_loop(0, steps, step_by_value, jnp.zeros(shape, jnp.float32))

    def run(total: Ref) -> Array:
        def multiply(a: Ref, b: Ref) -> None:
            compat.wgmma(total, a, b)
            # Waits for all products but the newest.
            compat.wgmma_wait(1)

        pl.loop(0, steps)(lambda step: advance(step, multiply))
        return total[...]

    return pl.run_scoped(run, compat.ACC(shape, jnp.float32))


def _read(ref: Ref) -> Array:
    """Loads an operand. A wgmma reads through the async proxy, as TMA writes; a plain load needs a fence for that."""
    value = ref[...]
    compat.commit_smem()
    return value


def _columns_of(bias: Ref, first: Index, shape: tuple[int, int], interpreted: bool) -> Float[Array, "R C"]:
    """The bias of a tile's columns, for every row."""
    columns = bias.at[pl.ds(first, shape[1])]
    if interpreted:
        values = columns[...]
    else:
        values = compat.load(columns, layout=compat.Layout.WGMMA.reduce(0), optimized=False)
    return lax.broadcast_in_dim(values.astype(jnp.float32), shape, [1])


def _gelu(x: Float[Array, "R C"]) -> Float[Array, "R C"]:
    """x sigmoid(2u) = x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3): one exponential, no cancellation."""
    factor = -2 * math.sqrt(2 / math.pi) * math.log2(math.e)
    return x / (1 + jnp.exp2(x * (factor + factor * 0.044715 * (x * x))))
