"""Norms against float64 closed forms, patches against loops and convolution, precision and stacking."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.models.layers import (
    LayerNormAffine,
    PatchEmbed,
    Scale,
    from_patches,
    linear,
    lookup,
    matmul_precision,
    pad_to_multiple,
    rms_norm,
    stack_layers,
    to_patches,
)


def normal(seed: int, *shape: int, dtype: str = "float32"):
    return (3 * jax.random.normal(jax.random.key(seed), shape) + 1).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm(dtype):
    x, scale = normal(0, 2, 5, 48, dtype=dtype), normal(1, 48, dtype=dtype)
    x64 = np.asarray(x, np.float64)
    exact = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 0.25) * np.asarray(scale, np.float64)
    out = rms_norm(x, scale, 0.25)
    assert out.dtype == dtype
    # One rounding: half a unit in the last of 24 or 8 bits, and the fp32 operations before.
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, rtol=1e-6 if dtype == "float32" else 2**-8)


def test_affine_parameters_are_fp32():
    norm = LayerNormAffine(48)
    assert {norm.scale.dtype, norm.bias.dtype} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(norm.scale[...], np.ones(48))
    np.testing.assert_array_equal(norm.bias[...], np.zeros(48))


def test_scale_is_one_at_first():
    scale = Scale(7, param_dtype="bfloat16").scale[...]
    np.testing.assert_array_equal(scale, np.ones(7))
    assert scale.dtype == jnp.bfloat16


def test_patches_by_loops():
    """Each patch is flattened in (frame, row, column, channel) order."""
    x, (pt, ph, pw) = np.asarray(normal(0, 2, 4, 4, 6, 3)), (2, 2, 3)
    patches = np.asarray(to_patches(jnp.asarray(x), (pt, ph, pw)))
    assert patches.shape == (2, 2, 2, 2, 36)
    for b, t, h, w in itertools.product(range(2), repeat=4):
        block = x[b, pt * t : pt * (t + 1), ph * h : ph * (h + 1), pw * w : pw * (w + 1)]
        np.testing.assert_array_equal(patches[b, t, h, w], block.ravel())
    np.testing.assert_array_equal(from_patches(jnp.asarray(patches), (pt, ph, pw)), x)


@pytest.mark.parametrize("size", [(4, 8, 8), (5, 7, 9), (1, 1, 1)])
def test_padding_repeats_the_last(size):
    x = np.asarray(normal(0, 1, *size, 2))
    padded = np.asarray(pad_to_multiple(jnp.asarray(x), (2, 4, 4)))
    assert padded.shape[1:4] == tuple(-(-side // p) * p for side, p in zip(size, (2, 4, 4), strict=True))
    for index in np.ndindex(*padded.shape[1:4]):
        inside = tuple(min(i, side - 1) for i, side in zip(index, size, strict=True))
        np.testing.assert_array_equal(padded[0, *index], x[0, *inside])


@pytest.mark.parametrize("size", [(4, 8, 8), (3, 6, 10)])
def test_patch_embedding_is_a_strided_convolution(size):
    embed = PatchEmbed((2, 4, 4), 3, 10, dtype="float32", rngs=nnx.Rngs(0))
    embed.bias[...] = normal(1, 10)
    x = normal(0, 2, *size, 3)
    pads = [(0, -side % p) for side, p in zip(size, (2, 4, 4), strict=True)]
    padded = np.pad(np.asarray(x), [(0, 0), *pads, (0, 0)], mode="edge")
    convolved = jax.lax.conv_general_dilated(
        jnp.asarray(padded),
        embed.kernel[...],
        window_strides=(2, 4, 4),
        padding="VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision="highest",
    )
    np.testing.assert_allclose(embed(x), convolved + embed.bias[...], atol=2e-5)


def test_patch_embedding_dtypes():
    embed = PatchEmbed((1, 2, 2), 3, 8, dtype="bfloat16", param_dtype="float32", rngs=nnx.Rngs(0))
    assert (embed.kernel.dtype, embed.bias.dtype) == ("float32", "float32")
    assert embed(normal(0, 1, 1, 2, 2, 3)).dtype == jnp.bfloat16


def test_fp32_products_ask_for_full_precision():
    assert matmul_precision("float32") == jax.lax.Precision.HIGHEST
    assert matmul_precision(jnp.bfloat16) is None
    layer = linear(4, 5, dtype="float32", rngs=nnx.Rngs(0))
    text = str(jax.make_jaxpr(lambda x: layer(x))(jnp.ones((2, 4))))
    assert "HIGHEST" in text


def test_linear_dtypes_and_bias():
    layer = linear(4, 5, dtype="bfloat16", rngs=nnx.Rngs(0))
    assert layer.kernel.dtype == layer.bias.dtype == jnp.bfloat16
    layer = linear(4, 5, bias=False, dtype="bfloat16", param_dtype="float32", rngs=nnx.Rngs(0))
    assert layer.kernel.dtype == jnp.float32
    assert layer.bias is None
    assert layer(jnp.ones((2, 4))).dtype == jnp.bfloat16


def test_stacked_layers_differ_and_run_in_a_scan():
    stack = stack_layers(lambda rngs: linear(4, 4, dtype="float32", rngs=rngs), 3, nnx.Rngs(0))
    kernels = np.asarray(stack.kernel[...])
    assert kernels.shape == (3, 4, 4)
    assert len(np.unique(kernels.reshape(3, -1), axis=0)) == 3
    graph, state = nnx.split(stack)
    x = normal(0, 2, 4)
    out, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graph, layer)(x), None), x, state)
    np.testing.assert_allclose(out, np.asarray(x) @ kernels[0] @ kernels[1] @ kernels[2], rtol=1e-5)


@pytest.mark.parametrize("rows", [7, 5000])
def test_lookup_and_its_gradient_are_those_of_indexing(rows):
    table = jax.random.normal(jax.random.key(0), (rows, 5))
    indices = jnp.array([[0, 6, 6], [3, 0, 6]])  # a row that occurs thrice, some that never do
    cotangent = jax.random.normal(jax.random.key(1), (2, 3, 5))
    out, vjp = jax.vjp(lambda table: lookup(table, indices), table)
    np.testing.assert_array_equal(out, np.asarray(table)[np.asarray(indices)])
    expected = np.zeros((rows, 5), np.float32)
    np.add.at(expected, np.asarray(indices), np.asarray(cotangent))
    np.testing.assert_allclose(vjp(cotangent)[0], expected, rtol=1e-6, atol=1e-6)


def test_lookup_in_a_small_table_adds_up_in_a_fixed_order():
    def gradient(rows):
        loss = jax.grad(lambda table, indices: lookup(table, indices).sum())
        table, indices = jnp.zeros((rows, 5), jnp.bfloat16), jnp.zeros((2, 3), jnp.int32)
        return jax.jit(loss).lower(table, indices).as_text()

    assert "scatter" not in gradient(96)
    assert "scatter" in gradient(256_384)


def test_lookup_sums_in_fp32():
    table, indices = jnp.ones((2, 1), jnp.bfloat16), jnp.zeros((1000,), jnp.int32)
    gradient = jax.grad(lambda table: lookup(table, indices).sum().astype(jnp.float32))(table)
    assert gradient[0, 0] == 1000  # one by one in bfloat16 it would stop at 256
