"""Stage 1: closed forms of the loss, draws per sample, gradients, text from tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from method_cases import (
    EXECUTION,
    LAYOUT,
    draw,
    draw_parameter,
    keys,
    latent_batch,
    loss,
    networks,
    sample,
    silent_networks,
    value_and_grad,
)

from helios_jax.checkpoints.random import random_network
from helios_jax.config import TextEncoderConfig
from helios_jax.models.network import Network
from helios_jax.models.text_encoder import Umt5Encoder
from helios_jax.models.tokenization import encode_tokens
from helios_jax.training.batch import PromptBatch
from helios_jax.training.corruption import Corruption
from helios_jax.training.injection import Injection
from helios_jax.training.methods.base import Base
from helios_jax.training.networks import Networks
from helios_jax.training.timesteps import TimestepSampling

WHOLE = Base(context=Injection(layout=LAYOUT))
METHOD = Base(context=Injection(layout=LAYOUT, corruption=None, saturation=None))  # compiles faster


def test_loss_of_a_network_that_predicts_nothing():
    """mean |z - x|^2, times the weight of the noise level."""
    batch, method = latent_batch(3), dataclasses.replace(METHOD, timesteps=TimestepSampling(weighting="cosmap"))
    draws = draw(method, batch, keys(3))
    squares = ((np.asarray(draws.noise) - np.asarray(batch.target)) ** 2).mean((1, 2, 3, 4))
    sigma = (1000 - np.floor(1000 * np.asarray(draws.u, np.float64))) / 1000
    weights = 2 / (np.pi * (1 - 2 * sigma + 2 * sigma**2))
    value, metrics = loss(method, silent_networks(), batch, draws)
    assert float(value) == pytest.approx((weights * squares).mean(), rel=1e-5)
    assert float(metrics["mse"]) == pytest.approx(squares.mean(), rel=1e-5)


def test_loss_from_keys_is_the_loss_from_their_draws():
    batch, module = latent_batch(2), networks()
    graph, state = nnx.split(module)
    value = jax.jit(lambda state: WHOLE.loss(nnx.merge(graph, state), batch, keys(2), EXECUTION)[0])(state)
    expected = loss(WHOLE, module, batch, draw(WHOLE, batch, keys(2)))[0]
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


def test_input_corruption_leaves_the_target_alone():
    batch, method = latent_batch(2), dataclasses.replace(METHOD, input_corruption=Corruption(clean=0.0))
    draws = draw(method, batch, keys(2))
    plain = dataclasses.replace(draws, input=None)
    assert loss(method, silent_networks(), batch, draws)[0] == loss(METHOD, silent_networks(), batch, plain)[0]
    assert loss(method, networks(), batch, draws)[0] != loss(METHOD, networks(), batch, plain)[0]


def test_draws_of_a_sample_follow_from_its_key_alone():
    batch, own = latent_batch(2), keys(3)
    draws, others = draw(WHOLE, batch, own[:2]), draw(WHOLE, batch, own[2:0:-1])
    for first, second in zip(jax.tree.leaves(draws), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(first[1], second[1])
        assert not np.array_equal(first[0], second[0])
    uses = (draws.noise, draws.context.corruption.noise)
    assert not np.array_equal(*(noise[0].ravel()[:7] for noise in uses))


def test_microbatches_average_to_the_batch():
    batch = latent_batch(2)
    draws = draw(METHOD, batch, keys(2))
    whole = loss(METHOD, networks(), batch, draws)[0]
    halves = [float(loss(METHOD, networks(), sample(batch, i), sample(draws, i))[0]) for i in range(2)]
    assert halves[0] != pytest.approx(halves[1], rel=1e-3)
    assert float(whole) == pytest.approx(np.mean(halves), rel=1e-6)


def test_bfloat16_network_gives_an_fp32_loss():
    batch = latent_batch(2)
    draws = draw(METHOD, batch, keys(2))
    value, metrics = loss(METHOD, networks("bfloat16"), batch, draws)
    assert (value.dtype, metrics["mse"].dtype) == (jnp.float32, jnp.float32)
    assert float(value) == pytest.approx(float(loss(METHOD, networks(), batch, draws)[0]), rel=2e-2)


def test_text_from_tokens_is_encoded_inside_the_loss():
    encoder = random_network(Umt5Encoder, TextEncoderConfig.tiny(), "float32", draw_parameter)
    tokens, lengths = jnp.arange(10).reshape(2, 5) + 5, jnp.array([5, 2])
    embeds = encode_tokens(encoder, tokens, jnp.array([[True] * 5, [True, True, False, False, False]]))
    assert not np.asarray(embeds[1, 2:]).any()
    batch = dataclasses.replace(latent_batch(2), text=PromptBatch(embeds=embeds))
    draws = draw(METHOD, batch, keys(2))
    expected = loss(METHOD, networks(), batch, draws)[0]

    both = Networks(transformer=networks().transformer, text_encoder=encoder.module)
    batch = dataclasses.replace(batch, text=PromptBatch(tokens=tokens, lengths=lengths))
    value, gradient = value_and_grad(METHOD, both, batch, draws)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    assert {path.split("/")[0] for path in gradient} == {"transformer", "text_encoder"}
    assert float(jnp.abs(gradient["text_encoder/encoder/block/layer/0/SelfAttention/q/kernel"]).max()) > 0
    table = np.asarray(gradient["text_encoder/shared/embedding"])
    read = [5, 6, 7, 8, 9, 10, 11]  # tokens before the lengths; nothing flows to padding
    assert np.flatnonzero(np.abs(table).max(1)).tolist() == read


def test_missing_networks_and_texts_are_named():
    given = Networks(transformer=networks().transformer)
    assert list(nnx.state(given)) == ["transformer"]
    assert not hasattr(given, "vae")
    with pytest.raises(AttributeError, match=r"no text_encoder among the networks \(transformer\): pass text_encoder="):
        given.text_embeds(PromptBatch(tokens=jnp.zeros((1, 3), int), lengths=jnp.array([1])))
    with pytest.raises(ValueError, match="the batch has no text"):
        given.text_embeds(PromptBatch(tokens=jnp.zeros((1, 3), int)))
    with pytest.raises(AttributeError, match="'Networks' object has no attribute '_transformer'"):
        _ = given._transformer


def test_networks_may_have_any_names():
    both = Networks(discriminator=networks().transformer, transformer=networks().transformer)
    again = nnx.merge(*nnx.split(both))
    assert sorted(nnx.state(again)) == ["discriminator", "transformer"]
    assert again.discriminator.config == both.transformer.config
    with pytest.raises(AttributeError, match=r"no critic among the networks \(discriminator, transformer\)"):
        _ = again.critic


def test_networks_survive_split_and_merge():
    encoder = random_network(Umt5Encoder, TextEncoderConfig.tiny(), "float32", draw_parameter).module
    both = Networks(transformer=networks().transformer, text_encoder=encoder)
    again = nnx.merge(*nnx.split(both))
    assert again.text_encoder.config == TextEncoderConfig.tiny()
    assert Network.of(again.transformer).graph == Network.of(both.transformer).graph
