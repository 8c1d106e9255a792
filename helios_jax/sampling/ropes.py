"""Rotary tables. Those of relative positions depend on sizes alone: streams of one size share them."""

import weakref

import numpy as np

from helios_jax.sampling.chunk import ChunkSampler, rope_table
from helios_jax.sampling.plan import LevelPlan
from helios_jax.typing import Array

# A table lives as long as a stream uses it: closing the last stream of a size frees the memory.
_TABLES: weakref.WeakValueDictionary[tuple[object, ...], Array] = weakref.WeakValueDictionary()


def shared_ropes(sampler: ChunkSampler, full: tuple[int, int], plans: tuple[LevelPlan, ...]) -> tuple[Array, ...]:
    """The rotary table of each level, those of a running stream if one has the same sizes and devices.

    Args:
        sampler: Its network's configuration and devices, and its layout of the context.
        full: Latent (height, width) of the video.
        plans: The levels.
    """
    return tuple(_table(sampler, full, plan.size) for plan in plans)


def absolute_ropes(
    sampler: ChunkSampler, full: tuple[int, int], plans: tuple[LevelPlan, ...], chunk: int
) -> tuple[Array, ...]:
    """The rotary table of each level for one chunk of a model with absolute positions.

    Args:
        sampler: See ``shared_ropes``, as for ``full`` and ``plans``.
        chunk: Number of the chunk in the video, those of a clip that it continues included.
    """
    layout, number = sampler.history_config, np.int32(chunk)
    return tuple(rope_table(sampler.transformer, layout, full, plan.size, number) for plan in plans)


def _table(sampler: ChunkSampler, full: tuple[int, int], current: tuple[int, int]) -> Array:
    key = (sampler.transformer.config, sampler.history_config, sampler.placement, tuple(full), tuple(current))
    table = _TABLES.get(key)
    if table is None:
        table = rope_table(sampler.transformer, sampler.history_config, full, current)
        _TABLES[key] = table
    return table
