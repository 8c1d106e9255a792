"""The residual sum and norm on a Hopper GPU, at the sizes of the 14B model and at odd ones."""

import jax
import jax.numpy as jnp
import pytest
from elementwise_cases import ResidualNormCases, assert_close_on_device, guarded

from pallas_kernels import devices
from pallas_kernels.adaln import reference

pytestmark = pytest.mark.skipif(not devices.is_hopper(), reason="needs a Hopper GPU as the default device")

USES = ["self_attention", "cross_attention", "ffn"]


class TestKernel(ResidualNormCases):
    dim = 5120

    @pytest.fixture(params=[(1, 1, 0), (2, 37, 13), (1, 541, 200)])
    def size(self, request):
        return request.param


class TestOtherWidths(ResidualNormCases):
    @pytest.fixture(params=[1024, 8192])
    def size(self, request, monkeypatch):
        monkeypatch.setattr(type(self), "dim", request.param)
        return 2, 19, 7


class TestLevels(ResidualNormCases):
    """Every token of a pyramid level, against the reference run operation by operation (as a whole XLA may skip the
    rounding between its two steps)."""

    dim = 5120
    test_numbers = test_gradients = test_rows_of_a_large_mean = None

    @pytest.mark.parametrize("use", USES)
    @pytest.mark.parametrize("size", [(1, 2940, 2400), (1, 4560, 2400), (1, 11040, 2400), (2, 2940, 2400)])
    def test_every_token(self, size, use):
        operands, options = self.operands(size, use)
        compiled = jax.jit(lambda operands, rows: self.run(operands, options | rows))
        rows = {name: options.pop(name) for name in ("gate", "scale", "shift")}
        outputs = guarded(lambda: compiled(operands, rows))
        for out, want in zip(outputs, reference.residual_norm(*operands, **rows, **options), strict=True):
            assert_close_on_device(out, want)
        for out, again in zip(outputs, compiled(operands, rows), strict=True):
            assert bool(jnp.array_equal(out, again))
