"""Norm, activation and sums of frames in the GPU interpreter: clips of odd and even length, ragged pixels, races."""

import pytest
from hopper_interpreter import run_in_interpreter

pytestmark = pytest.mark.slow

PROGRAM = """
from pallas_kernels.norm_silu_pairs.hopper import norm_silu_pairs

x = normal(*case) + jnp.bfloat16(0.3)
gamma = 1 + normal(case[-1]) / 8
got = [np.asarray(d, np.float64) for d in norm_silu_pairs(x, gamma, interpret=interpret)]

z = np.asarray(x, np.float64)
z = z / np.sqrt((z**2).mean(-1, keepdims=True)) * np.asarray(gamma, np.float64)
y = np.pad(z / (1 + np.exp(-z)), ((0, 0), (2, case[1] % 2), (0, 0), (0, 0)))
y = [y[:, i : i + case[1] + case[1] % 2 : 2] for i in range(4)]
want = [y[0] - y[2], y[1] + y[2], y[2] - y[1], y[1] - y[3]]
# One rounding, to the nearest; the terms of a difference are exact to 1e-5.
excess = [np.abs(a - b) - 2.0**-8 * np.abs(b) - 1e-5 for a, b in zip(got, want, strict=True)]
print(json.dumps(float(max(e.max() for e in excess))))
"""


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 3, 136, 96), id="odd, two tiles and eight pixels"),
        pytest.param((2, 1, 72, 192), id="one frame, two samples"),
        pytest.param((2, 2, 72, 384), id="two frames, two samples"),
        pytest.param((1, 6, 8, 192), id="even, less than one tile"),
    ],
)
def test_kernel_in_the_interpreter(shape):
    assert run_in_interpreter(PROGRAM, shape) <= 0
