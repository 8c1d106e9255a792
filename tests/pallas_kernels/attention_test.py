"""Attention on the CPU: the plain JAX implementation, the choice of implementations, and bad arguments."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import AttentionCases, draw, relative_error

from pallas_kernels import devices
from pallas_kernels.attention import (
    AttentionConfig,
    attention,
    attention_packed,
    attention_reference,
    cudnn,
    implementations,
    xla,
)


class TestXla(AttentionCases):
    implementation = "xla"
    dtype = "float32"
    error = 1e-5
    head_dims = (24,)


def test_the_default_runs_anywhere():
    q, k, v = draw(0, *3 * [(1, 40, 2, 64)], dtype="bfloat16")
    want, _ = attention_reference(q, k, v)
    assert relative_error(attention(q, k, v), want) < 4e-3


def test_long_sequences_go_block_by_block(monkeypatch):
    q, k, v = draw(0, (2, 50, 3, 8), (2, 40, 3, 8), (2, 40, 3, 8), dtype="float32")
    monkeypatch.setattr(xla, "_BLOCK_LOGITS", 2 * 3 * 40 * 12)
    out, lse = attention(q, k, v, implementation="xla", return_lse=True)
    want, want_lse = attention_reference(q, k, v)
    assert relative_error(out, want) < 1e-6
    assert relative_error(lse, want_lse) < 1e-6


@pytest.mark.parametrize("implementation", ["pallas", "cudnn"])
def test_an_implementation_that_cannot_run_says_why(implementation):
    q = jnp.zeros((1, 8, 1, 128), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match=f"{implementation}.*needs a GPU"):
        attention(q, q, q, implementation=implementation)


def test_unknown_implementation():
    q = jnp.zeros((1, 8, 1, 128))
    problem = implementations.Problem(num_heads=1, first_heads=(0, 0, 0), scale=1.0, kv_length=8, return_lse=False)
    message = "unknown attention implementation 'triton'; expected 'pallas', 'cudnn', 'xla' or None"
    with pytest.raises(ValueError, match=message):
        implementations.OP.choose("triton", q, q, q, problem)


def test_cudnn_is_not_chosen_where_a_key_counts_several_times(monkeypatch):
    monkeypatch.setattr(implementations.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(devices, "is_hopper", lambda: False)
    q = jnp.zeros((1, 8, 1, 128), jnp.bfloat16)
    once = implementations.Problem(num_heads=1, first_heads=(0, 0, 0), scale=1.0, kv_length=8, return_lse=False)
    twice = dataclasses.replace(once, last_key_count=2)
    assert implementations.OP.choose(None, q, q, q, once) == "cudnn"
    assert implementations.OP.choose(None, q, q, q, twice) == "xla"
    with pytest.raises(NotImplementedError, match="'cudnn' cannot run: it counts every key once, got last_key_count=2"):
        implementations.OP.choose("cudnn", q, q, q, twice)


def test_last_key_count_out_of_range():
    q = jnp.zeros((1, 8, 1, 128))
    with pytest.raises(ValueError, match="last_key_count must be at least 1, got 0"):
        attention(q, q, q, last_key_count=0)


def test_reference_counts_the_last_key():
    """Logits 0 and weights 1, 1 and 6: the mean is (1 + 2 + 6 * 4) / 8, the sum of exponentials 8."""
    v = jnp.array([1.0, 2.0, 4.0, 100.0])[None, :, None, None]
    out, lse = attention_reference(jnp.zeros((1, 1, 1, 1)), jnp.ones_like(v), v, kv_length=3, last_key_count=6)
    np.testing.assert_allclose(out.item(), 27 / 8, rtol=1e-6)
    np.testing.assert_allclose(lse.item(), np.log(8), rtol=1e-6)


@pytest.mark.parametrize("kv_length", [0, 9, -1])
def test_kv_length_out_of_range(kv_length):
    q = jnp.zeros((1, 8, 1, 128))
    with pytest.raises(ValueError, match=r"kv_length must be in 1\.\.8"):
        attention(q, q, q, kv_length=kv_length)


def test_mixed_types():
    q = jnp.zeros((1, 8, 1, 128))
    with pytest.raises(ValueError, match="one dtype"):
        attention(q, q, q.astype(jnp.bfloat16))


def test_heads_that_are_not_there():
    q = jnp.zeros((1, 8, 4, 128))
    with pytest.raises(ValueError, match="v has 4 heads, needed are 2 from head 3 on"):
        attention_packed(q, q, q, num_heads=2, first_heads=(0, 2, 3))


@pytest.mark.parametrize(("field", "value"), [("block_kv", 100), ("block_kv", 288), ("stages", 1)])
def test_bad_configuration(field, value):
    with pytest.raises(ValueError, match=field):
        AttentionConfig(**{field: value})


@pytest.fixture
def known_rule():
    cudnn._require_known_rule.cache_clear()
    yield
    cudnn._require_known_rule.cache_clear()


def test_the_private_rule_of_jax_is_the_one_that_is_called(known_rule):
    cudnn._require_known_rule()


def test_a_changed_private_rule_is_refused(known_rule, monkeypatch):
    monkeypatch.setattr(cudnn.fused, "_dot_product_attention_bwd_rule", lambda scale, dropout: None)
    q, lse = jnp.zeros((1, 8, 1, 64), jnp.bfloat16), jnp.zeros((1, 1, 8))
    message = r"private function of JAX whose parameters are \('scale', 'dropout'\) in JAX"
    with pytest.raises(NotImplementedError, match=message):
        cudnn.attention_cudnn_gradient(q, q, q, q, lse, q, scale=1.0)
