"""What every implementation of attention must satisfy; subclasses name the implementation and the types."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import attention, attention_packed, attention_reference


def draw(seed: int, *shapes: Sequence[int], dtype: str) -> list[jax.Array]:
    """Normal arrays."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes]


def relative_error(got: jax.Array, want: jax.Array) -> float:
    """Norm of the difference over the norm of the reference, in fp64; NaN stays NaN."""
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


class AttentionCases:
    """Subclass, set the attributes, and name it ``Test...``."""

    implementation: str | None
    dtype = "bfloat16"
    error = 4e-3
    """Allowed relative error: bf16 rounding of P and of the output."""
    head_dims = (128, 64)
    has_lse = True
    counts_last_key = True

    @pytest.mark.parametrize(
        ("length", "kv_length"), [(128, 128), (256, 512), (64, 8), (200, 136), (77, 99), (1, 1), (130, 1000)]
    )
    def test_lengths(self, length: int, kv_length: int) -> None:
        for head_dim in self.head_dims:
            shapes = ((2, length, 3, head_dim), *2 * [(2, kv_length, 3, head_dim)])
            q, k, v = draw(length + kv_length, *shapes, dtype=self.dtype)
            out = attention(q, k, v, implementation=self.implementation)
            want, want_lse = attention_reference(q, k, v)
            assert out.dtype == q.dtype
            assert relative_error(out, want) < self.error
            if self.has_lse:
                same, lse = attention(q, k, v, implementation=self.implementation, return_lse=True)
                assert lse.dtype == jnp.float32
                np.testing.assert_allclose(lse, want_lse, atol=1e-4)
                np.testing.assert_array_equal(same, out)

    def test_padded_keys_do_not_count(self) -> None:
        q, k, v = draw(1, *3 * [(1, 144, 2, self.head_dims[0])], dtype=self.dtype)
        k, v = k.at[:, 139:].multiply(100), v.at[:, 139:].multiply(100)
        out = attention(q, k, v, kv_length=139, implementation=self.implementation)
        want, _ = attention_reference(q, k[:, :139], v[:, :139])
        assert relative_error(out, want) < self.error

    @pytest.mark.parametrize(("kv_length", "count"), [(128, 385), (256, 257), (99, 7), (1, 30), (512, 2)])
    def test_last_key_counts_several_times(self, kv_length: int, count: int) -> None:
        if not self.counts_last_key:
            pytest.skip("counts every key once")
        shapes = ((2, 72, 3, self.head_dims[0]), *2 * [(2, kv_length, 3, self.head_dims[0])])
        q, k, v = draw(kv_length, *shapes, dtype=self.dtype)
        call = {"last_key_count": count, "implementation": self.implementation}
        out, lse = attention(q, k, v, return_lse=True, **call)
        want, want_lse = attention_reference(q, *(jnp.pad(x, self.repeated(count), mode="edge") for x in (k, v)))
        assert relative_error(out, want) < self.error
        np.testing.assert_allclose(lse, want_lse, atol=1e-4)

    @staticmethod
    def repeated(count: int) -> tuple[tuple[int, int], ...]:
        """Padding that makes the last of the keys occur ``count`` times."""
        return ((0, 0), (0, count - 1), (0, 0), (0, 0))

    def test_scale_and_large_logits(self) -> None:
        q, k, v = draw(2, *3 * [(1, 192, 2, self.head_dims[0])], dtype=self.dtype)
        out = attention(8 * q, k, v, scale=0.5, implementation=self.implementation)
        want, _ = attention_reference(8 * q, k, v, scale=0.5)
        assert relative_error(out, want) < self.error

    @pytest.mark.parametrize("growth", [4, 12, 40])
    def test_scores_that_grow_towards_the_first_keys(self, growth: float) -> None:
        """A kernel may meet the largest score at any time, above the others by any distance."""
        shapes = ((2, 200, 3, self.head_dims[0]), *2 * [(2, 500, 3, self.head_dims[0])])
        q, k, v = draw(6, *shapes, dtype=self.dtype)
        q = q.at[:, 64:128].multiply(growth)
        k = (k * jnp.geomspace(growth, 0.1, 500)[:, None, None]).astype(k.dtype)
        for x in ((q, k, v), (q[:, ::-1], k[:, ::-1], v[:, ::-1])):
            out = attention(*x, implementation=self.implementation)
            want, _ = attention_reference(*x)
            assert relative_error(out, want) < self.error

    def test_packed_heads(self) -> None:
        (qkv,) = draw(3, (2, 136, 9, self.head_dims[0]), dtype=self.dtype)
        call = {"num_heads": 3, "implementation": self.implementation}
        out = attention_packed(qkv, qkv, qkv, first_heads=(0, 3, 6), **call)
        want, _ = attention_reference(qkv[:, :, :3], qkv[:, :, 3:6], qkv[:, :, 6:])
        assert relative_error(out, want) < self.error

    def test_gradients_where_the_last_key_counts_several_times(self) -> None:
        if not self.counts_last_key:
            pytest.skip("counts every key once")
        q, k, v, weight = draw(5, *4 * [(1, 72, 2, self.head_dims[0])], dtype=self.dtype)

        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            out = attention(q, k, v, kv_length=50, last_key_count=9, implementation=self.implementation)
            return jnp.vdot(out.astype(jnp.float32), weight.astype(jnp.float32))

        def want(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            k, v = (jnp.pad(x[:, :50], self.repeated(9), mode="edge") for x in (k, v))
            return jnp.vdot(attention_reference(q, k, v)[0], weight.astype(jnp.float32))

        got = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
        wanted = jax.grad(want, argnums=(0, 1, 2))(*(x.astype(jnp.float32) for x in (q, k, v)))
        for gradient, reference in zip(got, wanted, strict=True):
            assert relative_error(gradient, reference) < 3 * self.error

    def test_gradients(self) -> None:
        qkv, weight = draw(4, (1, 136, 6, self.head_dims[0]), (1, 136, 2, self.head_dims[0]), dtype=self.dtype)

        def loss(qkv: jax.Array) -> jax.Array:
            call = {"num_heads": 2, "first_heads": (0, 2, 4), "kv_length": 130, "implementation": self.implementation}
            return jnp.vdot(attention_packed(qkv, qkv, qkv, **call).astype(jnp.float32), weight.astype(jnp.float32))

        def want(qkv: jax.Array) -> jax.Array:
            out, _ = attention_reference(qkv[:, :, :2], qkv[:, :, 2:4], qkv[:, :, 4:], kv_length=130)
            return jnp.vdot(out, weight.astype(jnp.float32))

        got, want = jax.jit(jax.grad(loss))(qkv), jax.grad(want)(qkv.astype(jnp.float32))
        assert not jnp.any(got[:, 130:, 2:])
        assert relative_error(got, want) < 3 * self.error
