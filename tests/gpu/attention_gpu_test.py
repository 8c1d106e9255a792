"""Attention on a Hopper GPU: every implementation, the lengths of the 14B model, stray writes, determinism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import AttentionCases, relative_error

from pallas_kernels import devices
from pallas_kernels.attention import attention, attention_packed, attention_reference

pytestmark = pytest.mark.skipif(not devices.is_hopper(), reason="needs a Hopper GPU as the default device")


class TestPallas(AttentionCases):
    implementation = "pallas"


class TestPallasFloat16(AttentionCases):
    implementation = "pallas"
    dtype = "float16"
    error = 6e-4


class TestCudnn(AttentionCases):
    implementation = "cudnn"
    has_lse = False
    counts_last_key = False


@jax.jit(static_argnums=(1, 2))
def draw(seed: int, shape: tuple[int, ...], dtype: str = "bfloat16") -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@pytest.mark.parametrize(
    ("length", "kv_length"),
    [(11040, 11040), (4560, 4560), (2940, 2940), (8640, 512), (2160, 512), (540, 512), (4001, 3333), (11040, 226)],
)
def test_lengths_of_the_model(length, kv_length):
    padded, kv_padded = -(-length // 8) * 8, -(-kv_length // 8) * 8
    q, k, v = draw(0, (1, padded, 40, 128)), draw(1, (1, kv_padded, 40, 128)), draw(2, (1, kv_padded, 40, 128))
    out, lse = attention(q, k, v, kv_length=kv_length, implementation="pallas", return_lse=True)
    # Whole logits do not fit: first, last and some tiles of queries of three heads.
    rows = np.unique(np.r_[0:70, 120:136, length // 2 : length // 2 + 64, length - 140 : length])
    heads = np.array([0, 17, 39])
    q, k, v, out = (x[:, :, heads] for x in (q, k, v, out))
    want, want_lse = attention_reference(q[:, rows], k[:, :kv_length], v[:, :kv_length])
    assert relative_error(out[:, rows], want) < 4e-3
    assert float(jnp.abs(out[:, rows] - want).max()) < 2e-2
    np.testing.assert_allclose(lse[:, heads][:, :, rows], want_lse, atol=1e-4)
    # A second reference for every element.
    q, k, v = (x[:, :n] for x, n in ((q, length), (k, kv_length), (v, kv_length)))
    assert relative_error(out[:, :length], attention(q, k, v, implementation="cudnn")) < 5e-3


@pytest.mark.parametrize("growth", [12, 60])
def test_scores_that_grow_in_one_of_many_heads(growth):
    """Thread blocks recompute the tiles of this head, but not their other tiles."""
    length, head = 4560, 17
    shape = (1, length, 40, 128)
    q, k, v = (draw(seed, shape) for seed in range(3))
    call = {"implementation": "pallas", "return_lse": True}
    before, _ = attention(q, k, v, **call)
    q = q.at[:, :, head].multiply(growth)
    k = k.at[:, :100, head].multiply(growth)
    out, lse = attention(q, k, v, **call)
    others = np.arange(40) != head
    assert bool((out[:, :, others] == before[:, :, others]).all())
    rows = np.r_[0:70, 2200:2300, length - 140 : length]
    q, k, v, out, lse = q[:, rows, head], k[:, :, head], v[:, :, head], out[:, rows, head], lse[:, head, rows]
    want, want_lse = attention_reference(*(x[:, :, None] for x in (q, k, v)))
    assert relative_error(out, want[:, :, 0]) < 4e-3
    np.testing.assert_allclose(lse, want_lse[:, 0], rtol=1e-5)


@pytest.mark.parametrize("kv_length", [128, 256, 384])
@pytest.mark.parametrize("length", [8640, 2160, 540])
def test_one_padded_key_in_place_of_all(length, kv_length):
    q, k, v = draw(0, (1, length, 40, 128)), draw(1, (1, kv_length, 40, 128)), draw(2, (1, kv_length, 40, 128))
    count = 512 - kv_length + 1
    out, lse = attention(q, k, v, last_key_count=count, implementation="pallas", return_lse=True)
    k, v = (jnp.pad(x, ((0, 0), (0, count - 1), (0, 0), (0, 0)), mode="edge") for x in (k, v))
    want, want_lse = attention(q, k, v, implementation="pallas", return_lse=True)
    assert relative_error(out, want) < 4e-3
    np.testing.assert_allclose(lse, want_lse, atol=1e-4)


@pytest.mark.parametrize("length", [200, 2944, 136])
def test_nothing_is_written_past_the_output(length):
    shape = (1, length, 40, 128)
    q, k, v = (draw(seed, shape) for seed in range(3))
    call = jax.jit(lambda q, k, v: attention(q, k, v, implementation="pallas")).lower(q, k, v).compile()
    want = np.asarray(call(q, k, v).astype(jnp.float32))
    fill = jax.jit(lambda value: jnp.full(shape, value, jnp.bfloat16))
    # The output takes the place of a freed array between two guards. The first arrays fill gaps that other tests left.
    arrays = sorted((fill(7.0) for _ in range(64)), key=lambda x: x.unsafe_buffer_pointer())
    starts = [x.unsafe_buffer_pointer() for x in arrays]
    pitch = -(-arrays[0].nbytes // 256) * 256
    middle = next(i for i in range(1, 63) if starts[i + 1] - starts[i] == starts[i] - starts[i - 1] == pitch)
    before, after = arrays[middle - 1], arrays[middle + 1]
    arrays[middle].delete()
    outputs = []
    while not outputs or outputs[-1].unsafe_buffer_pointer() != starts[middle]:
        assert len(outputs) < 64, "the allocator did not reuse the gap between the guards"
        outputs.append(call(q, k, v))
    assert np.array_equal(np.asarray(outputs[-1].astype(jnp.float32)), want)
    assert bool((before == 7.0).all())
    assert bool((after == 7.0).all())


def test_every_row_is_written_and_results_repeat():
    (qkv,) = (draw(3, (2, 2944, 120, 128)),)
    run = jax.jit(
        lambda x: attention_packed(
            x, x, x, num_heads=40, first_heads=(0, 40, 80), kv_length=2940, implementation="pallas"
        )
    )
    first = run(qkv)
    assert bool(jnp.isfinite(first).all())
    assert bool((jnp.abs(first).max(-1) > 0).all())
    for _ in range(5):
        assert bool((run(qkv) == first).all())


@pytest.mark.parametrize(("length", "keys"), [(2940, 2940), (540, 512), (56, 49), (251, 300), (1001, 1001)])
def test_gradients(length, keys):
    q, weight, k, v = (draw(seed, (1, rows, 4, 128)) for seed, rows in enumerate((length, length, keys, keys)))

    def gradients(implementation):
        def loss(q, k, v):
            out = attention(q, k, v, implementation=implementation)
            return jnp.vdot(out.astype(jnp.float32), weight.astype(jnp.float32))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    def exact(q, k, v):
        return jnp.vdot(attention_reference(q, k, v)[0], weight.astype(jnp.float32))

    want = jax.jit(jax.grad(exact, argnums=(0, 1, 2)))(*(x.astype(jnp.float32) for x in (q, k, v)))
    for implementation in ("pallas", "cudnn"):
        for got, reference in zip(gradients(implementation), want, strict=True):
            assert relative_error(got.astype(jnp.float32), reference) < 1e-2


def test_the_default_is_the_kernel():
    q = draw(0, (1, 256, 2, 128))
    text = jax.jit(lambda q: attention(q, q, q)).lower(q).as_text()
    assert "mosaic_gpu" in text
    text = jax.jit(lambda q: attention(q, q, q)).lower(q[..., :96]).as_text()
    assert "cudnn" in text
    text = jax.jit(lambda q: attention(q, q, q, last_key_count=2)).lower(q).as_text()
    assert "mosaic_gpu" in text
    text = jax.jit(lambda q: attention(q, q, q, last_key_count=2)).lower(q[..., :96]).as_text()
    assert "cudnn" not in text
