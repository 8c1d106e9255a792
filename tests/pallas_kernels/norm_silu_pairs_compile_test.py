"""Norm, activation and sums of frames through Mosaic and, where it is installed, the compiler: no spills, memory."""

import jax
import jax.numpy as jnp
import pytest
from hopper_compiler import compile_for_hopper

from pallas_kernels.norm_silu_pairs.hopper import norm_silu_pairs

PROGRAM = """
from pallas_kernels.norm_silu_pairs.hopper import norm_silu_pairs

jax.jit(norm_silu_pairs).lower(array{shape}, array({shape}[-1])).compile()
"""

SHAPES = [(1, 33, 384 * 640, 96), (1, 33, 192 * 320, 192), (1, 17, 96 * 160, 384), (2, 1, 8, 384)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lowering(shape):
    """Mosaic accepts the kernel; this needs JAX only."""
    operands = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (shape, shape[-1:])]
    text = jax.jit(norm_silu_pairs).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_spills_and_shared_memory_for_as_many_blocks_as_fit(shape):
    report = compile_for_hopper(PROGRAM.format(shape=shape))
    assert report["kernels"] == 1
    assert report["spilled"] == 0
    blocks = 384 // shape[-1]
    assert blocks * (report["shared_memory"] + 1024) <= 233472  # the system takes 1 KiB of every block
