"""Cases that every implementation of the element-wise kernels must pass; subclasses name it and the sizes.

Expected numbers come from NumPy in float64, rounded to bfloat16 where the ops round. A kernel may differ from them
only where fp32 arithmetic lands on the other side of a rounding boundary, which is rare.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels.adaln import residual_norm
from pallas_kernels.qk_norm_rope import qk_norm_rope

EPS = 1e-6


def normal(seed: int, *shape: int, dtype: str = "bfloat16", mean: float = 0.0):
    return (jax.random.normal(jax.random.key(seed), shape) + mean).astype(dtype)


def rounded(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def assert_rounded(got, want: np.ndarray) -> None:
    """Asserts equality with ``want`` after rounding, except for a few neighbouring numbers."""
    got, want = np.asarray(got, np.float64), rounded(want)
    assert got.shape == want.shape
    assert np.mean(got != want) < 2e-3
    assert np.linalg.norm(got - want) <= 2e-4 * np.linalg.norm(want)


class ResidualNormCases:
    implementation = "pallas"
    dim = 1024

    def operands(self, size: tuple[int, int, int], use: str):
        """x, update and the keywords of one of the three passes of a block."""
        batch, tokens, history = size
        updated = tokens - history if use == "ffn" else tokens
        x = normal(0, batch, tokens, self.dim, mean=0.5)
        update = normal(1, batch, updated, self.dim)
        positions = 1 if use == "cross_attention" else 2
        rows = {"gate": normal(2, batch, 2, self.dim, dtype="float32")} if use != "ffn" else {"gate": None}
        rows["scale"] = normal(3, 1 if positions == 1 else batch, positions, self.dim, dtype="float32", mean=1.0)
        rows["shift"] = normal(4, 1, positions, self.dim, dtype="float32")
        return (x, update), {**rows, "num_history": history, "norm_history": use != "cross_attention", "eps": EPS}

    def run(self, operands, options):
        return residual_norm(*operands, **options, implementation=self.implementation)

    @pytest.mark.parametrize("use", ["self_attention", "cross_attention", "ffn"])
    def test_numbers(self, size, use):
        operands, options = self.operands(size, use)
        stream, normed = self.run(operands, options)
        assert stream.dtype == normed.dtype == jnp.bfloat16

        x, update = (np.asarray(operand, np.float64) for operand in operands)
        tokens, history = x.shape[1], options["num_history"]
        is_current = (np.arange(tokens) >= history)[:, None]

        def row(rows):
            rows = np.asarray(rows, np.float64)
            return np.where(is_current, rows[:, -1:], rows[:, :1])

        gate = 1.0 if options["gate"] is None else row(options["gate"])[:, tokens - update.shape[1] :]
        want = x.copy()
        want[:, tokens - update.shape[1] :] += gate * update
        assert_rounded(stream, want)

        z = np.asarray(stream, np.float64)  # as returned: an odd rounding of the stream is not counted twice
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + EPS)
        want = z * row(options["scale"]) + row(options["shift"])
        assert_rounded(normed, want[:, 0 if options["norm_history"] else history :])

    def test_rows_of_a_large_mean(self, size):
        """The mean of squares minus the squared mean would lose the variance."""
        (x, update), options = self.operands(size, "ffn")
        x = x + jnp.bfloat16(1000)
        ones = jnp.ones((1, 1, self.dim))
        stream, normed = self.run((x, update), {**options, "scale": ones, "shift": 0 * ones})
        z = np.asarray(stream, np.float64)
        want = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + EPS)
        np.testing.assert_allclose(np.asarray(normed, np.float64), want, atol=1e-3, rtol=2**-7)

    @pytest.mark.parametrize("use", ["self_attention", "cross_attention", "ffn"])
    def test_gradients(self, size, use):
        """The gradients equal those of the reference."""
        operands, options = self.operands(size, use)
        rows = {name: options.pop(name) for name in ("gate", "scale", "shift")}
        outputs = self.run(operands, rows | options)
        weights = [normal(5 + i, *out.shape, dtype="float32") for i, out in enumerate(outputs)]

        def loss(operands, rows, implementation):
            outputs = residual_norm(*operands, **rows, **options, implementation=implementation)
            return sum(jnp.sum(w * out.astype(jnp.float32)) for w, out in zip(weights, outputs, strict=True))

        got, want = (jax.grad(loss, (0, 1))(operands, rows, name) for name in (self.implementation, "xla"))
        assert jax.tree.structure(got) == jax.tree.structure((operands, rows))
        jax.tree.map(assert_gradient, got, want)


class QkNormRopeCases:
    implementation = "pallas"
    dim = 1024

    def operands(self, size: tuple[int, int], head_dim: int):
        batch, tokens = size
        angles = normal(4, tokens, head_dim // 2, dtype="float32", mean=3.0)
        length = jnp.linspace(0.5, 1.0, tokens)[:, None]  # pooled tables rotate and shrink
        table = jnp.stack([length * jnp.cos(angles), length * jnp.sin(angles)], axis=1)
        q, k = (normal(i, batch, tokens, self.dim, mean=0.3) for i in (0, 1))
        return q, k, normal(2, self.dim, mean=1.0), normal(3, self.dim, mean=1.0), table

    def run(self, *operands, **options):
        return qk_norm_rope(*operands, **options, eps=EPS, implementation=self.implementation)

    @pytest.mark.parametrize("head_dim", [64, 128])
    def test_numbers(self, size, head_dim):
        q, k, q_scale, k_scale, table = self.operands(size, head_dim)
        outputs = self.run(q, k, q_scale, k_scale, table)
        cos, sin = (np.asarray(table[:, None, i], np.float64) for i in (0, 1))
        for out, x, scale in zip(outputs, (q, k), (q_scale, k_scale), strict=True):
            assert out.dtype == jnp.bfloat16
            x, scale = np.asarray(x, np.float64), np.asarray(scale, np.float64)
            normed = rounded(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * scale)
            even, odd = (normed.reshape(*x.shape[:2], -1, head_dim)[..., i::2] for i in (0, 1))
            want = np.empty(out.shape)
            want[..., 0::2], want[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
            assert_rounded(out, want)

    def test_fused_projection(self, size):
        """Queries and keys are read in place, after and between other channels."""
        q, k, *rest = self.operands(size, 128)
        fused = jnp.concatenate([normal(9, *size, 128), q, normal(8, *size, 256), k], axis=-1)
        got = self.run(fused, fused, *rest, q_start=128, k_start=384 + self.dim)
        for a, b in zip(got, self.run(q, k, *rest), strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))

    def test_gradients(self, size):
        """The gradients of all five operands equal those of the reference."""
        operands = self.operands(size, 128)
        weights = [normal(5 + i, *out.shape, dtype="float32") for i, out in enumerate(self.run(*operands))]

        def loss(operands, implementation):
            outputs = qk_norm_rope(*operands, eps=EPS, implementation=implementation)
            return sum(jnp.sum(w * out.astype(jnp.float32)) for w, out in zip(weights, outputs, strict=True))

        got, want = (jax.grad(loss)(operands, name) for name in (self.implementation, "xla"))
        jax.tree.map(assert_gradient, got, want)


def assert_gradient(got, want) -> None:
    assert got.dtype == want.dtype
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.linalg.norm(want) > 0
    assert np.linalg.norm(got - want) <= 5e-3 * np.linalg.norm(want)


def guarded(run):
    """Calls ``run`` with NaN in the memory that its outputs reuse, between arrays that it must not touch."""
    guards, holes = [jnp.full((1 << 18,), 7.0)], []
    for out in jax.eval_shape(run):
        holes.append(jnp.full(out.shape, jnp.nan, out.dtype))
        guards.append(jnp.full((1 << 18,), 7.0))
    for hole in jax.block_until_ready(holes):
        hole.delete()
    outputs = jax.block_until_ready(run())
    assert all(bool((guard == 7.0).all()) for guard in guards)
    assert not any(bool(jnp.isnan(out).any()) for out in outputs)
    return outputs


def assert_close_on_device(got, want) -> None:
    """Asserts that large arrays are equal except for a few neighbouring bf16 numbers."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert float(jnp.mean(got != want)) < 5e-4
    got, want = got.astype(jnp.float32), want.astype(jnp.float32)
    assert float(jnp.linalg.norm(got - want)) <= 2e-4 * float(jnp.linalg.norm(want))
