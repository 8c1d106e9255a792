"""Norm, activation and taps through Mosaic and, where it is installed, the compiler: no spills, memory that fits."""

import jax
import jax.numpy as jnp
import pytest
from hopper_compiler import compile_for_hopper

from pallas_kernels.norm_silu_taps.hopper import norm_silu_taps

PROGRAM = """
from pallas_kernels.norm_silu_taps.hopper import norm_silu_taps

jax.jit(norm_silu_taps).lower(array{shape}, array({shape}[-1])).compile()
"""

SHAPES = [(1, 33, 384 * 640, 96), (1, 33, 192 * 320, 192), (1, 17, 96 * 160, 384), (2, 1, 8, 384)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lowering(shape):
    """Mosaic accepts the kernel; this needs JAX only."""
    operands = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (shape, shape[-1:])]
    text = jax.jit(norm_silu_taps).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_spills_and_shared_memory_for_four_blocks(shape):
    report = compile_for_hopper(PROGRAM.format(shape=shape))
    assert report["kernels"] == 1
    assert report["spilled"] == 0
    assert 4 * (report["shared_memory"] + 1024) <= 233472  # the system takes 1 KiB of every block
