"""Tile shapes of the attention kernel, and the choice between them."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Tile shapes of the kernel.

    Attributes:
        block_kv: Keys per block, a multiple of 32.
        stages: Slots for blocks of keys, and as many for values.
    """

    block_kv: int = 128
    stages: int = 2

    def __post_init__(self) -> None:
        if self.block_kv % 32 or not 32 <= self.block_kv <= 256:
            raise ValueError(f"block_kv must be a multiple of 32 in 32..256, got {self.block_kv}")
        if self.stages < 2:
            raise ValueError(f"stages must be at least 2, got {self.stages}")


# 129 to 256 keys would be exactly two blocks of 128 in two slots. Every barrier then has a constant address of its own;
# the compiler keeps all of these in registers, runs out and spills seven. Blocks of 96 avoid this.
_CONFIGS = (
    (1024, AttentionConfig(block_kv=160)),
    (257, AttentionConfig(block_kv=128)),
    (129, AttentionConfig(block_kv=96)),
    (1, AttentionConfig(block_kv=128)),
)
"""Least number of keys, and the tile shapes that were fastest on an H200 from there on (README.md has the numbers)."""


def choose_config(kv_length: int) -> AttentionConfig:
    """The tuned tile shapes for ``kv_length`` keys."""
    return next(config for least, config in _CONFIGS if kv_length >= least)
