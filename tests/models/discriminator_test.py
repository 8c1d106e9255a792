"""Heads against loops in NumPy, the published sizes, and the checks of what heads can read."""

import dataclasses
import itertools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.config import TransformerConfig
from helios_jax.models.discriminator import Discriminator, DiscriminatorConfig, Head, head_sizes

SMALL = DiscriminatorConfig(hooks=(0, 2), width=6, groups=2)
LAYERS = [(3, 1, 1), (4, 2, 1), (4, 2, 1), (3, (2, 1, 1), 1), (3, (2, 1, 1), 1), ((1, 3, 3), 1, (0, 1, 1))]
"""Window, stride and padding of the published convolutions."""


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


VELOCITY, HIDDEN = normal(1, 2, 9, 8, 10, 3), normal(2, 2, 2, 9, 4, 5, 5)


def convolve(x, kernel, bias, stride, padding):
    """A convolution of [T, H, W, C] position by position, in float64."""
    x = np.pad(x, [*((pad, pad) for pad in padding), (0, 0)])
    window = kernel.shape[:3]
    sizes = [(side - taps) // step + 1 for side, taps, step in zip(x.shape[:3], window, stride, strict=True)]
    out = np.empty((*sizes, kernel.shape[-1]))
    for place in itertools.product(*map(range, sizes)):
        cut = tuple(slice(p * s, p * s + w) for p, s, w in zip(place, stride, window, strict=True))
        out[place] = np.tensordot(x[cut], kernel, 4) + bias
    return out


def expected_logit(head, x):
    """One sample through a head, in float64."""
    x = np.asarray(x, np.float64)
    for number, (_, stride, padding) in enumerate(LAYERS):
        stride, padding = np.broadcast_to(stride, 3), np.broadcast_to(padding, 3)
        conv, norm = head.convs[number], head.norms[number]
        x = convolve(x, np.float64(conv.kernel[...]), np.float64(conv.bias[...]), stride, padding)
        grouped = x.reshape(-1, SMALL.groups, SMALL.width // SMALL.groups)
        mean, variance = grouped.mean((0, 2), keepdims=True), grouped.var((0, 2), keepdims=True)
        x = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
        x = x * np.float64(norm.scale[...]) + np.float64(norm.bias[...])
        x = x / (1 + np.exp(-x))
    return x.mean((0, 1, 2)) @ np.float64(head.logit.kernel[...])[:, 0] + np.float64(head.logit.bias[...])[0]


def build(config, dtype="float32"):
    """A discriminator of the same random parameters for every dtype; its norms are not the identity."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Discriminator(config, 5, 3, dtype=dtype, rngs=nnx.Rngs(0))))

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(leaf.shape)
        window = math.prod(leaf.shape[:-1]) / (len(config.hooks) if "hooks" in name else 1)
        return jnp.asarray(drawn * window**-0.5 if "kernel" in name else 1 + 0.3 * drawn, leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))


def run(discriminator, velocity=VELOCITY, hidden=HIDDEN):
    graph, state = nnx.split(discriminator)
    return jax.jit(lambda state, *args: nnx.merge(graph, state)(*args))(state, velocity, hidden)


@pytest.fixture(scope="module")
def discriminator():
    return build(SMALL)


@pytest.fixture(scope="module")
def logits(discriminator):
    return run(discriminator)


def test_logits_are_those_of_loops_in_numpy(discriminator, logits):
    assert logits.shape == (2, 3)
    assert logits.dtype == jnp.float32
    graph, stacked = nnx.split(discriminator.hooks)
    hooks = [nnx.merge(graph, jax.tree.map(lambda leaf, n=n: leaf[n], stacked)) for n in range(2)]
    for sample in range(2):
        expected = [expected_logit(discriminator.final, VELOCITY[sample])]
        expected += [expected_logit(head, HIDDEN[n, sample]) for n, head in enumerate(hooks)]
        np.testing.assert_allclose(logits[sample], expected, rtol=2e-5, atol=2e-6)


def test_bfloat16_rounds_the_convolutions_only(logits):
    rounded = build(SMALL, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rounded))} == {jnp.dtype("float32")}
    found = run(rounded)
    assert found.dtype == jnp.float32
    assert not np.array_equal(found, found.astype(jnp.bfloat16))
    np.testing.assert_allclose(found, logits, atol=0.05)


def test_the_published_discriminator_has_988_million_parameters():
    config = TransformerConfig.helios_14b()
    module = nnx.eval_shape(
        lambda: Discriminator(DiscriminatorConfig(), config.dim, config.velocity_channels, rngs=nnx.Rngs(0))
    )

    def count(part):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(part)))

    assert count(module.final) == 113_002_753
    assert count(module.hooks) == 4 * 218_839_297
    assert count(module) == 988_359_941
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(module))} == {"float32"}


def test_initial_values_are_uniform_within_one_over_the_root_of_the_inputs():
    graph = nnx.graphdef(nnx.eval_shape(lambda: Head(8, 32, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    head = nnx.merge(graph, jax.jit(lambda: nnx.state(Head(8, 32, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))))())
    inputs = [27 * 8, 64 * 32, 64 * 32, 27 * 32, 27 * 32, 9 * 32, 32]
    for layer, fan in zip([*head.convs, head.logit], inputs, strict=True):
        kernel, bound = np.asarray(layer.kernel[...]), fan**-0.5
        assert np.abs(kernel).max() <= bound
        assert np.abs(layer.bias[...]).max() <= bound
        assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.25 if kernel.size < 100 else 0.05)
        assert np.abs(kernel.mean()) <= 4 * bound / math.sqrt(3 * kernel.size)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((9, 12, 20), [(9, 12, 20), (4, 6, 10), (2, 3, 5), (1, 3, 5), (1, 3, 5), (1, 3, 5)]),
        ((9, 24, 40), [(9, 24, 40), (4, 12, 20), (2, 6, 10), (1, 6, 10), (1, 6, 10), (1, 6, 10)]),
        ((4, 4, 4), [(4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)]),
    ],
)
def test_sizes_of_the_published_crops(size, expected):
    assert list(head_sizes(size)) == expected


@pytest.mark.parametrize("size", [(9, 2, 2), (9, 4, 3), (3, 4, 4)])
def test_heads_refuse_what_would_vanish(size):
    with pytest.raises(ValueError, match=r"cannot read .* has no output; at least 4 x 4 x 4"):
        head_sizes(size)
    with pytest.raises(ValueError, match="has no output"):
        build(SMALL).final(jnp.zeros((1, *size, 3)))


def test_settings_are_checked_against_the_denoiser():
    config, patch = DiscriminatorConfig(hooks=(1, 3)), (1, 2, 2)
    config.check_hooks(4)
    config.check_size(9, 8, 8, patch)
    with pytest.raises(ValueError, match="blocks 0 to 2"):
        config.check_hooks(3)
    with pytest.raises(ValueError, match="cannot read 9 x 2 x 2 positions"):
        config.check_size(9, 4, 4, patch)  # half of the latents of 64 x 64 pixels
    DiscriminatorConfig(hooks=()).check_size(9, 4, 4, patch)
    with pytest.raises(ValueError, match=r"1 hidden states given; the discriminator reads blocks \(0, 2\)"):
        build(SMALL)(jnp.zeros((1, 9, 8, 8, 3)), jnp.zeros((1, 1, 9, 4, 4, 5)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hooks": (3, 1)}, "increasing"),
        ({"hooks": (1, 1)}, "increasing"),
        ({"hooks": (-1,)}, "at least 0"),
        ({"width": 30, "groups": 4}, "multiple of groups=4"),
        ({"width": 8, "groups": 8}, "at least twice that"),
        ({"hooks": (), "final": False}, "needs a head"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**settings)


@pytest.mark.parametrize(("config", "kept"), [({"hooks": ()}, slice(1)), ({"final": False}, slice(1, None))])
def test_heads_may_be_left_out(config, kept, logits):
    """The logits of the heads that remain do not change."""
    part = build(dataclasses.replace(SMALL, **config))
    found = run(part, hidden=HIDDEN if part.config.hooks else None)
    np.testing.assert_allclose(found, logits[:, kept], rtol=1e-5)
