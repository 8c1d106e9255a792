"""Matrix product on Hopper's tensor cores (sm_90a), with bias and activation before the only write.

A thread block computes tiles of the result: two *consumer* warpgroups own one half each, and the *producer* does
nothing but issue TMA copies of slices along the contraction into a ring of slots in shared memory. The grid is
persistent; tiles are visited in a snake of bands of rows, so that those in flight share what they read in L2. How large
tiles are is chosen so that few of them run past the end and the last wave of thread blocks is full.

A chip at its power limit runs this and cuBLAS at the same rate. What the kernel saves is around the product: no
pass for the bias and the activation, and, inside a scan over stacked layers, no copy of the layer's weights, since
XLA hands a slice of the stack to a custom call in place and to cuBLASLt as a copy.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import compat
from pallas_kernels.compat import pl
from pallas_kernels.lowering import lowered_once

_CONSUMERS = 2
_REGISTERS = {"consumer": 232, "producer": 40}
"""Per thread; 65536 for the whole block."""

_DEPTH = 64
"""Length of a slice along the contraction."""

_BAND_ROWS = 2048
"""Rows of a band of the snake, at most: what is in flight is about as high as it is wide."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """Tile shapes of the kernel.

    Attributes:
        rows: Rows of one consumer.
        columns: Columns of one consumer, a multiple of 32.
        stages: Slots for slices.
        split: What the two consumers of a thread block divide among them, "rows" or "columns".
        rate: Measured rate of a full grid, relative to the fastest.
    """

    rows: int
    columns: int
    stages: int
    split: str = "rows"
    rate: float = 1.0

    @property
    def chunk(self) -> int:
        """Columns that swizzled memory holds side by side, and that a consumer stores at a time."""
        return 64 if self.columns % 64 == 0 else 32

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a thread block."""
        if self.split == "rows":
            return _CONSUMERS * self.rows, self.columns
        return self.rows, _CONSUMERS * self.columns


_CONFIGS = (
    LinearConfig(rows=128, columns=128, stages=4, split="columns"),
    LinearConfig(rows=128, columns=192, stages=3),
    LinearConfig(rows=64, columns=192, stages=5, rate=0.985),
    LinearConfig(rows=64, columns=128, stages=6, rate=0.97),
)


def choose_config(rows: int, columns: int, num_blocks: int) -> LinearConfig:
    """The tiles that waste least: rate times the share of computed elements, idle blocks included, that are wanted."""

    def wanted(config: LinearConfig) -> float:
        height, width = config.block
        tiles = pl.cdiv(rows, height) * pl.cdiv(columns, width)
        computed = pl.cdiv(tiles, num_blocks) * num_blocks * height * width
        return config.rate * rows * columns / computed

    return max(_CONFIGS, key=wanted)


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
    num_blocks = num_blocks or compat.multiprocessors()
    config = config or choose_config(length, out_features, num_blocks)
    block_rows, block_columns = config.block
    stages, chunk, steps = config.stages, config.chunk, features // _DEPTH
    grid = (pl.cdiv(length, block_rows), pl.cdiv(out_features, block_columns))
    num_tiles = math.prod(grid)
    band = pl.cdiv(grid[0], pl.cdiv(grid[0] * block_rows, _BAND_ROWS))
    num_blocks = min(num_tiles, num_blocks)
    interpreted = interpret is not None

    def body(*refs):
        x_gmem, kernel_gmem, *bias_gmem, out_gmem, x_smem, kernel_smem, out_smem, full, free = refs
        warpgroup, block = lax.axis_index("warpgroup"), lax.axis_index("block")
        my_tiles = lax.div(num_tiles - block + num_blocks - 1, num_blocks)

        def locate(n):
            """First row and column of this block's tile ``n``."""
            row, column = compat.planar_snake(block + n * num_blocks, grid, 0, band)
            return row * block_rows, column * block_columns

        @pl.when(warpgroup == _CONSUMERS)
        def produce():
            compat.set_max_registers(_REGISTERS["producer"], action="decrease")

            def load(n, step):
                row, column = locate(n)
                count = n * steps + step
                slot = lax.rem(count, stages)
                along, across = pl.ds(step * _DEPTH, _DEPTH), pl.ds(column, block_columns)
                pl.when(count >= stages)(lambda: compat.barrier_wait(free.at[slot]))
                rows = pl.ds(row, block_rows)
                compat.copy_gmem_to_smem(x_gmem.at[rows, along], x_smem.at[slot], full.at[slot])
                source = kernel_gmem.at[across, along] if transposed else kernel_gmem.at[along, across]
                compat.copy_gmem_to_smem(source, kernel_smem.at[slot], full.at[slot])

            @pl.loop(0, my_tiles)
            def _(n):
                pl.loop(0, steps)(lambda step: load(n, step))

            # Leave no arrival of a consumer unobserved.
            @pl.loop(lax.max(my_tiles * steps - stages, 0), my_tiles * steps)
            def _(count):
                compat.barrier_wait(free.at[lax.rem(count, stages)])

        @pl.when(warpgroup < _CONSUMERS)
        def consume():
            compat.set_max_registers(_REGISTERS["consumer"], action="increase")
            first_row = warpgroup * config.rows if config.split == "rows" else 0
            first_column = 0 if config.split == "rows" else warpgroup * config.columns
            my_rows, my_columns = pl.ds(first_row, config.rows), pl.ds(first_column, config.columns)

            def operands(slot):
                left = x_smem.at[slot, my_rows]
                if transposed:
                    return left, kernel_smem.at[slot, my_columns].transpose((1, 0))
                return left, kernel_smem.at[slot, :, my_columns]

            def product(n):
                first = n * steps

                def slot(step):
                    return lax.rem(first + step, stages)

                def advance(step, multiply):
                    compat.barrier_wait(full.at[slot(step)])
                    multiply(*operands(slot(step)))
                    # The product of this step stays in flight; the one before has ended, its slot is free.
                    pl.when(step > 0)(lambda: compat.barrier_arrive(free.at[slot(step - 1)]))

                total = accumulate(advance, steps, (config.rows, config.columns), interpret=interpreted)
                compat.barrier_arrive(free.at[slot(steps - 1)])
                return total

            @pl.loop(0, my_tiles)
            def _(n):
                total = product(n)
                row, column = locate(n)
                row, column = row + first_row, column + first_column
                for part in range(config.columns // chunk):
                    start = part * chunk
                    y = total[:, start : start + chunk]
                    if bias_gmem:
                        # A tile past the end stores nothing, but reads a bias.
                        first = lax.min(column + start, out_features - chunk)
                        y = y + _columns_of(bias_gmem[0], first, y.shape, interpreted)
                    y = _gelu(y) if activation == "gelu" else y
                    compat.wait_smem_to_gmem(0, wait_read_only=True)
                    out_smem.at[warpgroup][...] = y.astype(x.dtype)
                    compat.commit_smem()
                    across = pl.ds(column + start, chunk)
                    target = out_gmem.at[pl.ds(row, config.rows), across]
                    compat.copy_smem_to_gmem(out_smem.at[warpgroup], target)

            compat.wait_smem_to_gmem(0)

    slice_shape = (block_columns, _DEPTH) if transposed else (_DEPTH, block_columns)
    swizzle = chunk * x.dtype.itemsize
    return compat.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((length, out_features), x.dtype),
        scratch_types=(
            compat.tiled_smem((stages, block_rows, _DEPTH), x.dtype),
            compat.tiled_smem((stages, *slice_shape), x.dtype, 128 if transposed else swizzle),
            compat.tiled_smem((_CONSUMERS, config.rows, chunk), x.dtype, swizzle),
            compat.Barrier(num_arrivals=2, num_barriers=stages),
            compat.Barrier(num_arrivals=_CONSUMERS, num_barriers=stages),
        ),
        grid=(num_blocks,),
        grid_names=("block",),
        num_threads=_CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=compat.CompilerParams(approx_math=True),
        kernel_name="linear",
        interpret=interpret,
    )(*(operand for operand in (x, kernel, bias) if operand is not None))


def accumulate(advance, steps: int, shape: tuple[int, int], *, interpret: bool) -> jax.Array:
    """The sum in fp32 of the products that ``advance(step, multiply)`` hands to ``multiply``, one per step.

    Pallas' GPU interpreter has no accumulators; there the sum is a value.
    """
    if interpret:

        def step_by_value(step, total):
            products = []

            def multiply(a, b):
                products.append(jnp.dot(_read(a), _read(b), preferred_element_type=jnp.float32))

            advance(step, multiply)
            return total + products[0]

        return lax.fori_loop(0, steps, step_by_value, jnp.zeros(shape, jnp.float32))

    def run(total):
        def multiply(a, b):
            compat.wgmma(total, a, b)
            compat.wgmma_wait(1)

        pl.loop(0, steps)(lambda step: advance(step, multiply))
        return total[...]

    return pl.run_scoped(run, compat.ACC(shape, jnp.float32))


def _read(ref) -> jax.Array:
    """Loads an operand. A wgmma reads through the async proxy, as TMA writes; a plain load needs a fence for that."""
    value = ref[...]
    compat.commit_smem()
    return value


def _columns_of(bias, first, shape: tuple[int, int], interpreted: bool) -> jax.Array:
    """The bias of a tile's columns, for every row."""
    columns = bias.at[pl.ds(first, shape[1])]
    if interpreted:
        values = columns[...]
    else:
        values = compat.load(columns, layout=compat.Layout.WGMMA.reduce(0), optimized=False)
    return lax.broadcast_in_dim(values.astype(jnp.float32), shape, [1])


def _gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(2u) = x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3): one exponential, no cancellation."""
    factor = -2 * math.sqrt(2 / math.pi) * math.log2(math.e)
    return x / (1 + jnp.exp2(x * (factor + factor * 0.044715 * (x * x))))
