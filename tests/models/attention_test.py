"""Softmax attention against float64 numpy, whole and in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.models import attention as module
from helios_jax.models.attention import attention


def inputs(length: int, keys: int, dtype: str = "float32"):
    shapes = [(2, length, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8)]
    return [jax.random.normal(jax.random.key(i), shape).astype(dtype) for i, shape in enumerate(shapes)]


def exact(q, k, v) -> np.ndarray:
    """softmax(q k^T / sqrt(K)) v, one head at a time, float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.empty(q.shape)
    for batch in range(q.shape[0]):
        for head in range(q.shape[2]):
            logits = q[batch, :, head] @ k[batch, :, head].T / np.sqrt(q.shape[-1])
            weights = np.exp(logits)
            out[batch, :, head] = weights / weights.sum(axis=1, keepdims=True) @ v[batch, :, head]
    return out


@pytest.mark.parametrize(("length", "keys"), [(13, 13), (13, 5), (1, 7)])
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_equals_float64(length, keys, implementation):
    q, k, v = inputs(length, keys)
    np.testing.assert_allclose(attention(q, k, v, implementation=implementation), exact(q, k, v), atol=2e-6)


def test_bfloat16_rounds_weights_and_output_only():
    """Weights sum to one within 2^-9 each, so that errors stay within two roundings of the largest value."""
    q, k, v = inputs(13, 9, "bfloat16")
    out = attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), exact(q, k, v), atol=2 * 2**-8 * float(jnp.abs(v).max()))


def test_large_logits_do_not_overflow():
    q, k, v = inputs(4, 6)
    best = np.asarray(jnp.einsum("bsnk,btnk->bsnt", q, k)).argmax(-1)
    out = np.asarray(attention(1e4 * q, 1e4 * k, v))
    picked = np.take_along_axis(np.asarray(v), best[..., None], axis=1)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, picked, atol=1e-6)


@pytest.mark.parametrize("block_elements", [2 * 3 * 13 * 7, 2 * 3 * 5 * 7, 2 * 3 * 4 * 7, 2 * 3 * 7, 1])
def test_blocks_equal_the_whole(block_elements, monkeypatch):
    """One block; then 3, 4, 13 blocks of 13 queries, the first two with a ragged end; then more blocks than queries."""
    q, k, v = inputs(13, 7)
    whole = attention(q, k, v)
    sizes = []
    original = jax.lax.map
    monkeypatch.setattr(module.jax.lax, "map", lambda f, xs: sizes.append(xs.shape[:3:2]) or original(f, xs))
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block_elements)
    np.testing.assert_allclose(attention(q, k, v), whole, atol=1e-6)
    expected = {546: [], 210: [(3, 5)], 168: [(4, 4)], 42: [(13, 1)], 1: [(546, 1)]}
    assert sizes == expected[block_elements]


def test_gradient_through_blocks(monkeypatch):
    q, k, v = inputs(13, 7)

    def loss(q, k, v):
        return (attention(q, k, v) ** 2).sum()

    whole = jax.grad(loss, argnums=(0, 1, 2))(q, k, v)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 210)
    for blocked, expected in zip(jax.grad(loss, argnums=(0, 1, 2))(q, k, v), whole, strict=True):
        np.testing.assert_allclose(blocked, expected, atol=1e-5)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="unknown attention implementation 'flash'; expected 'cudnn', 'xla' or None"):
        # The type checker of the tests would object to the literal first.
        getattr(attention, "__wrapped__", attention)(*inputs(2, 2), implementation="flash")
