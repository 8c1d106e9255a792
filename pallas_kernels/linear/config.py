"""Tile shapes of the linear kernel, and the choice between them."""

import dataclasses
import math

CONSUMERS = 2
"""Warpgroups of a thread block that compute."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """Tile shapes of the kernel.

    Attributes:
        rows: Rows of one consumer.
        columns: Columns of one consumer, a multiple of 32.
        stages: Slots for slices.
        split: What the two consumers of a thread block divide between them, "rows" or "columns".
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
            return CONSUMERS * self.rows, self.columns
        return self.rows, CONSUMERS * self.columns


CONFIGS = (
    LinearConfig(rows=128, columns=128, stages=4, split="columns"),
    LinearConfig(rows=128, columns=192, stages=3),
    LinearConfig(rows=64, columns=192, stages=5, rate=0.985),
    LinearConfig(rows=64, columns=128, stages=6, rate=0.97),
)
"""The tile shapes that are fastest for some layer of the model (README.md has the numbers)."""


def choose_config(rows: int, columns: int, num_blocks: int) -> LinearConfig:
    """The tile shapes with the largest rate times share of useful work.

    Only elements of the result are useful; tiles past its end and thread blocks that idle in the last round are not.

    Args:
        rows: Rows of the result.
        columns: Columns of the result.
        num_blocks: Thread blocks.
    """

    def useful_rate(config: LinearConfig) -> float:
        height, width = config.block
        tiles = math.ceil(rows / height) * math.ceil(columns / width)
        computed = math.ceil(tiles / num_blocks) * num_blocks * height * width
        return config.rate * rows * columns / computed

    return max(CONFIGS, key=useful_rate)
