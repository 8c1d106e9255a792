"""Norm, activation and taps in Pallas' GPU interpreter: copies to three frames, ragged pixels, zeros, races."""

import pytest
from hopper_interpreter import run_in_interpreter

PROGRAM = """
from pallas_kernels.norm_silu_taps.hopper import norm_silu_taps

x = normal(*case) + jnp.bfloat16(0.3)
gamma = 1 + normal(case[-1]) / 8
got = np.asarray(norm_silu_taps(x, gamma, interpret=interpret), np.float64)

z = np.asarray(x, np.float64)
z = z / np.sqrt((z**2).mean(-1, keepdims=True)) * np.asarray(gamma, np.float64)
y = np.pad(z / (1 + np.exp(-z)), ((0, 0), (2, 0), (0, 0), (0, 0)))
want = np.concatenate([y[:, tap : tap + case[1]] for tap in range(3)], axis=-1)
assert got.shape == want.shape
# One rounding, to the nearest: where zeros are wanted, nothing else is allowed.
print(json.dumps(float(np.max(np.abs(got - want) - (2.0**-8 + 1e-5) * np.abs(want)))))
"""


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 3, 264, 96), id="one tile and eight pixels"),
        pytest.param((2, 1, 136, 192), id="one frame, two samples"),
        pytest.param((2, 2, 72, 384), id="two frames, two samples"),
        pytest.param((1, 5, 8, 192), id="less than one tile"),
    ],
)
def test_kernel_in_the_interpreter(shape):
    assert run_in_interpreter(PROGRAM, shape) <= 0
