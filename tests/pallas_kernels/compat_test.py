"""The code of a kernel does not depend on what the process has lowered before."""

import jax
import jax.numpy as jnp

from pallas_kernels.adaln.hopper import residual_norm


def lowered() -> str:
    """The code of a kernel for a GPU."""
    x, row = jax.ShapeDtypeStruct((1, 8, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((1, 1, 1024), jnp.float32)

    def call(x, row):
        options = {"num_history": 0, "norm_history": True, "eps": 1e-6}
        return residual_norm(x, x, gate=row, scale=row, shift=row, **options)

    return jax.jit(call).trace(x, row).lower(lowering_platforms=("cuda",)).as_text()


def test_the_code_of_a_kernel_does_not_depend_on_those_before_it():
    first = lowered()
    assert "mosaic_gpu" in first
    assert lowered() == first
