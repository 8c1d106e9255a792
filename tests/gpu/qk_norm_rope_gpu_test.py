"""RMSNorm and rotation on a Hopper GPU, at the sizes of the 14B model and at odd ones."""

import jax
import jax.numpy as jnp
import pytest
from elementwise_cases import EPS, QkNormRopeCases, assert_close_on_device, guarded

from pallas_kernels import devices
from pallas_kernels.qk_norm_rope import reference

pytestmark = pytest.mark.skipif(not devices.is_hopper(), reason="needs a Hopper GPU as the default device")


class TestKernel(QkNormRopeCases):
    dim = 5120

    @pytest.fixture(params=[(1, 1), (2, 37), (1, 541)])
    def size(self, request):
        return request.param


class TestOtherWidths(QkNormRopeCases):
    @pytest.fixture(params=[1024, 6144])
    def size(self, request, monkeypatch):
        monkeypatch.setattr(type(self), "dim", request.param)
        return 2, 19


class TestLevels(QkNormRopeCases):
    """Every token of a pyramid level, against the reference run operation by operation."""

    dim = 5120
    test_numbers = test_fused_projection = test_gradients = None

    @pytest.mark.parametrize("size", [(1, 2940), (1, 4560), (1, 11040), (2, 2940)])
    def test_every_token(self, size):
        operands = self.operands(size, 128)
        compiled = jax.jit(self.run)
        outputs = guarded(lambda: compiled(*operands))
        for out, want in zip(outputs, reference.qk_norm_rope(*operands, q_start=0, k_start=0, eps=EPS), strict=True):
            assert_close_on_device(out, want)
        for out, again in zip(outputs, compiled(*operands), strict=True):
            assert bool(jnp.array_equal(out, again))
