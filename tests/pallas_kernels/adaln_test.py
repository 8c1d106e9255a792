"""The residual sum and norm on a CPU: reference, kernel in interpret mode, choice and errors."""

import jax.numpy as jnp
import pytest
from elementwise_cases import ResidualNormCases

from pallas_kernels import devices
from pallas_kernels.adaln import residual_norm
from pallas_kernels.compat import force_gpu_interpret_mode

SIZES = [(1, 5, 0), (2, 7, 3)]


class TestReference(ResidualNormCases):
    implementation = "xla"
    dim = 96

    @pytest.fixture(params=SIZES)
    def size(self, request):
        return request.param


class TestInterpretedKernel(ResidualNormCases):
    @pytest.fixture(params=SIZES)
    def size(self, request, monkeypatch):
        monkeypatch.setattr(devices, "is_hopper", lambda: True)
        with force_gpu_interpret_mode():
            yield request.param


def call(x=(1, 4, 1024), update=(1, 4, 1024), gate=(1, 2, 1024), rows=(1, 2, 1024), dtype=jnp.bfloat16, **options):
    x, update = jnp.ones(x, dtype), jnp.ones(update, dtype)
    gate, rows = jnp.ones(gate), jnp.ones(rows)
    return residual_norm(x, update, gate=gate, scale=rows, shift=rows, **options)


def test_a_cpu_uses_the_reference():
    stream, normed = call(num_history=1)
    assert float(stream.mean()) == 2.0
    assert float(normed.mean()) == 1.0  # no variance: only the shift remains


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "it needs a GPU of compute capability 9.0"),
        ({"dtype": jnp.float32}, "must be bfloat16, not float32"),
        ({"x": (1, 4, 96), "update": (1, 4, 96), "gate": (1, 2, 96), "rows": (1, 2, 96)}, "multiple of 1024"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(options, message):
    with pytest.raises(NotImplementedError, match=message):
        call(**options, implementation="pallas")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_history": 4}, "num_history is 4; it must leave at least one of the 4 tokens"),
        ({"update": (1, 3, 1024), "num_history": 2}, "update has 3 tokens; expected all 4 or the 2 current ones"),
        ({"gate": (1, 3, 1024)}, r"gate has shape \(1, 3, 1024\)"),
        ({"rows": (2, 2, 1024)}, r"scale has shape \(2, 2, 1024\)"),
    ],
)
def test_operands_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        call(**options)
