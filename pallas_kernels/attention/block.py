"""A thread block of the attention kernel: what it knows of the call, its memory and barriers, and its tiles."""

import dataclasses
import math
from typing import Any

from jax import lax
from jaxtyping import Array

from pallas_kernels.compat import Ref

CONSUMERS = 2

ROWS = 64
"""Queries of one consumer: the height of a wgmma."""

TILE = CONSUMERS * ROWS
"""Queries of one thread block."""

Index = Array | int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything about a call that is known when the kernel is traced.

    Attributes:
        num_heads: Heads to compute.
        first_heads: Head of the first query, key and value in their arrays.
        scale: Factor of the logits.
        return_lse: Whether to write the logarithms of the sums.
        head_dim: Channels of a head.
        dtype: Type of queries, keys, values and output.
        block_kv: Keys of a block.
        stages: Slots.
        num_blocks: Thread blocks.
        tiles_per_head: Tiles of one head.
        num_tiles: Tiles of all heads and samples.
        num_steps: Blocks of keys, at least one.
        may_repeat: Whether to use the maximum of the first block, and to redo tiles whose sums come out too large.
        interpreted: Whether the kernel runs in the interpreter.
    """

    num_heads: int
    first_heads: tuple[int, int, int]
    scale: float
    return_lse: bool
    head_dim: int
    dtype: Any
    block_kv: int
    stages: int
    num_blocks: int
    tiles_per_head: int
    num_tiles: int
    num_steps: int
    may_repeat: bool
    interpreted: bool

    @property
    def log2_scale(self) -> float:
        """The factor c of (2) and (3), with which powers of two replace powers of e."""
        return self.scale * math.log2(math.e)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """References to arrays in global memory (gmem), to scratch in shared memory (smem), and barriers.

    A barrier named *full* is completed by TMA when data has arrived, one named *free* by both consumers when they have
    read it. ``q_full`` has one barrier per consumer; the next four have one per slot.

    ``bias_gmem`` is ``None`` where nothing is added to the scores, ``lse_gmem`` and ``lse_smem`` without log-sum-exp,
    ``doubt_smem`` and ``judged`` where no tile is computed twice.
    """

    q_gmem: Ref
    k_gmem: Ref
    v_gmem: Ref
    bias_gmem: Ref
    out_gmem: Ref
    lse_gmem: Ref
    q_smem: Ref
    k_smem: Ref
    v_smem: Ref
    out_smem: Ref
    lse_smem: Ref
    doubt_smem: Ref
    q_full: Ref
    k_full: Ref
    v_full: Ref
    k_free: Ref
    v_free: Ref
    judged: Ref


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One thread block as each of its warpgroups sees it.

    Attributes:
        plan: What is the same for all thread blocks.
        memory: References.
        warpgroup: Number of the warpgroup; the last one is the producer.
        number: Number of the thread block.
        my_tiles: How many tiles it computes: those of its number, then every ``num_blocks``-th.
    """

    plan: Plan
    memory: Memory
    warpgroup: Array
    number: Array
    my_tiles: Array

    def locate(self, n: Index) -> tuple[Array, Array, Array]:
        """Sample, head and first query of this block's tile ``n``."""
        plan = self.plan
        tile = self.number + n * plan.num_blocks
        # Tiles of one head are neighbours, so that thread blocks in flight share its keys and values in L2.
        row, tile = lax.div(tile, plan.tiles_per_head), lax.rem(tile, plan.tiles_per_head)
        return lax.div(row, plan.num_heads), lax.rem(row, plan.num_heads), tile * TILE

    def slot(self, count: Index) -> Array:
        """The slot of step number ``count`` of this block."""
        return lax.rem(count, self.plan.stages)
