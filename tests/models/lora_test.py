"""Adapters: what they add, what merging gives, how many parameters they have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.checkpoints.random import random_network
from helios_jax.config import TransformerConfig
from helios_jax.context import Tiers
from helios_jax.models import HeliosTransformer
from helios_jax.models.layers import PatchEmbed, linear
from helios_jax.models.lora import adapted_layers, add_lora, merge_lora, strip_lora

TINY = TransformerConfig.tiny()
PATCHERS = "patch_(embedding|short|mid|long)"


@functools.cache
def transformer(dtype="float32"):
    generator = np.random.default_rng(0)

    def draw(mean, std, shape, dtype):
        return jnp.asarray(mean + std * generator.standard_normal(shape), dtype)

    return random_network(HeliosTransformer, TINY, dtype, draw).module


@functools.cache
def adapted_transformer(dtype="float32"):
    """All layers have adapters of rank 4 and scale 1/2."""
    return add_lora(transformer(dtype), rank=4, alpha=2, key=jax.random.key(0))


def randomised(module):
    """The module with adapters that do something."""
    graph, state = nnx.split(module)
    generator = np.random.default_rng(5)
    flat = [
        (path, variable.replace(jnp.asarray(generator.standard_normal(variable.shape) / 10, jnp.float32)))
        if path[-1] == "lora_b"
        else (path, variable)
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def output(module):
    """The output for fixed inputs, with history."""
    generator = np.random.default_rng(1)

    def draw(*shape):
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    latents, text = draw(2, 9, 8, 8, 16), draw(2, 5, TINY.text_dim)
    long, mid, short = (draw(2, frames, 8, 8, 16) for frames in (16, 2, 2))
    graph, state = nnx.split(module)
    call = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
    return call(state, latents, jnp.array([900.0, 30.0]), text, Tiers(long=long, mid=mid, short=short))


def arrays(module):
    return {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(module))}


def test_a_linear_layer_adds_its_low_rank_product():
    layer = linear(6, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    adapted = randomised(add_lora(nnx.Dict(layer=layer), rank=2, alpha=3, key=jax.random.key(2))).layer
    x = jax.random.normal(jax.random.key(0), (5, 6))
    a, b = np.asarray(adapted.lora_a[...]), np.asarray(adapted.lora_b[...])
    assert a.shape == (6, 2)
    assert b.shape == (2, 4)
    np.testing.assert_allclose(adapted(x) - layer(x), 1.5 * x @ a @ b, atol=1e-6)


def test_parts_of_a_fused_layer_have_adapters_of_their_own():
    layer = linear(6, 12, dtype=jnp.float32, rngs=nnx.Rngs(0))
    adapted = randomised(add_lora(nnx.Dict(to_qkv=layer), rank=2, key=jax.random.key(2))).to_qkv
    x = jax.random.normal(jax.random.key(0), (3, 5, 6))
    a, b = np.asarray(adapted.lora_a[...]), np.asarray(adapted.lora_b[...])
    assert a.shape == (6, 3, 2)
    assert b.shape == (3, 2, 4)
    expected = np.concatenate([x @ a[:, part] @ b[part] for part in range(3)], axis=-1)
    np.testing.assert_allclose(adapted(x) - layer(x), expected, atol=1e-6)


def test_a_patch_embedding_adds_a_convolution():
    patcher = PatchEmbed((2, 4, 4), 3, 8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    adapted = randomised(add_lora(nnx.Dict(patch=patcher), rank=2, key=jax.random.key(2))).patch
    assert adapted.lora_a.shape == (2, 4, 4, 3, 2)
    x = jax.random.normal(jax.random.key(0), (1, 4, 8, 8, 3))
    options = {"window_strides": (2, 4, 4), "padding": "VALID", "dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}
    hidden = jax.lax.conv_general_dilated(x, adapted.lora_a[...], **options)
    np.testing.assert_allclose(adapted(x) - patcher(x), hidden @ adapted.lora_b[...], atol=2e-5)


@pytest.mark.slow
def test_initial_factors_are_gaussian_and_zero_and_change_nothing():
    module, adapted = transformer(), adapted_transformer()
    factors = arrays(adapted)
    for name, array in factors.items():
        if name.endswith("lora_b"):
            assert not array.any()
        if name.endswith("lora_a"):
            assert array.dtype == jnp.float32
            assert float(array.std()) == pytest.approx(1 / 4, rel=6 * (2 * array.size) ** -0.5), name
    np.testing.assert_array_equal(output(adapted), output(module))


def test_draws_depend_on_the_layer_alone():
    few = arrays(add_lora(transformer(), rank=4, targets=("proj_out",), key=jax.random.key(0)))
    all_ = arrays(adapted_transformer())
    np.testing.assert_array_equal(few["proj_out/lora_a"], all_["proj_out/lora_a"])
    first, second = (all_[f"blocks/attn2/{name}/lora_a"] for name in ("to_q", "to_k"))
    assert not np.allclose(first, second)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_merging_gives_the_same_outputs(dtype):
    adapted = randomised(adapted_transformer(dtype))
    merged = merge_lora(adapted)
    before, after, plain = (np.asarray(output(module), np.float32) for module in (adapted, merged, transformer(dtype)))
    assert np.abs(before - plain).max() > 0.5 * plain.std()
    assert np.abs(before - after).max() < (1e-5 if dtype == "float32" else 0.06) * plain.std()


def test_a_merged_or_stripped_network_is_built_like_one_without():
    plain, adapted = transformer(), adapted_transformer()
    assert nnx.split(adapted)[0] != nnx.split(plain)[0]
    for module in (merge_lora(adapted), strip_lora(adapted)):
        assert nnx.split(module)[0] == nnx.split(plain)[0]
        assert arrays(module).keys() == arrays(plain).keys()
    assert not adapted_layers(plain)


def published(rank, excludes):
    """Sizes of the parameters that a published recipe trains, without arrays."""
    config = TransformerConfig.helios_14b()

    def make():
        module = HeliosTransformer(config, dtype="bfloat16", rngs=nnx.Rngs(0))
        return add_lora(module, rank=rank, excludes=excludes, key=jax.random.key(0))

    sizes = {path: array.size for path, array in arrays(nnx.eval_shape(make)).items()}
    adapters = sum(size for path, size in sizes.items() if path.endswith(("lora_a", "lora_b")))
    patchers = sum(size for path, size in sizes.items() if path.startswith(("patch_s", "patch_m", "patch_l")))
    return adapters, patchers


@pytest.mark.parametrize(
    ("rank", "excludes", "adapters"),
    [
        (128, "patch_(short|mid|long)", 623.8e6),  # stage 1
        (256, PATCHERS, 1246.3e6),  # stage 2, init
        (256, "", 1252.8e6),  # stage 2, post
        (256, "patch_embedding", 1251.4e6),  # stage 3
    ],
)
def test_published_recipes_have_their_numbers_of_parameters(rank, excludes, adapters):
    found, patchers = published(rank, (excludes,))
    assert found == pytest.approx(adapters, abs=0.05e6)
    if rank == 128:
        assert patchers == pytest.approx(23.9e6, abs=0.05e6)


def test_mistakes_are_named():
    module = transformer()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"no layer matches the LoRA target 'attn3/.\*'; layers are blocks/attn1"):
        add_lora(module, rank=4, targets=("attn3/.*",), key=key)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        add_lora(module, rank=0, key=key)
    with pytest.raises(ValueError, match="proj_out has an adapter already"):
        add_lora(add_lora(module, rank=4, targets=("proj_out",), key=key), rank=4, targets=("proj_out",), key=key)
