"""RMSNorm and rotation on a CPU: reference, kernel in interpret mode, choice and errors."""

import jax.numpy as jnp
import numpy as np
import pytest
from elementwise_cases import QkNormRopeCases, normal

from pallas_kernels import devices
from pallas_kernels.compat import force_gpu_interpret_mode
from pallas_kernels.qk_norm_rope import qk_norm_rope

SIZES = [(1, 3), (2, 5)]


class TestReference(QkNormRopeCases):
    implementation = "xla"

    @pytest.fixture(params=SIZES)
    def size(self, request):
        return request.param


class TestInterpretedKernel(QkNormRopeCases):
    @pytest.fixture(params=SIZES)
    def size(self, request, monkeypatch):
        monkeypatch.setattr(devices, "is_hopper", lambda: True)
        with force_gpu_interpret_mode():
            yield request.param


def call(dim=1024, dtype=jnp.bfloat16, pairs=64, table_dtype=jnp.float32, **options):
    x, scale = jnp.ones((1, 4, dim), dtype), jnp.ones((options.pop("features", dim),), dtype)
    return qk_norm_rope(x, x, scale, scale, jnp.ones((4, 2, pairs), table_dtype), **options)


def test_a_cpu_uses_the_reference():
    """The choice holds for any head size, weight type and width."""
    q, k = normal(0, 2, 6, 192), normal(1, 2, 6, 192)
    operands = q, k, normal(2, 192, dtype="float32"), normal(3, 192), normal(4, 6, 2, 12, dtype="float32")
    for out, want in zip(qk_norm_rope(*operands), qk_norm_rope(*operands, implementation="xla"), strict=True):
        assert out.shape == (2, 6, 8, 24)
        np.testing.assert_array_equal(np.asarray(out, np.float32), np.asarray(want, np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "it needs a GPU of compute capability 9.0"),
        ({"dtype": jnp.float32}, "must be bfloat16, not float32"),
        ({"pairs": 16}, r"heads must have \(64, 128\) channels, not 32"),
        ({"dim": 1536}, "D must be a multiple of 1024 up to 6144, not 1536"),
        ({"dim": 2048 + 64, "features": 2048, "k_start": 64}, "multiples of the head dimension 128"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(options, message):
    with pytest.raises(NotImplementedError, match=message):
        call(**options, implementation="pallas")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 24}, "1024 channels do not divide into heads of 48"),
        ({"k_start": 1}, "k has 1024 channels; expected at least 1"),
        ({"table_dtype": jnp.bfloat16}, "the table is bfloat16; expected float32"),
    ],
)
def test_operands_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        call(**options)
