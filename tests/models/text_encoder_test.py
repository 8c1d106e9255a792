"""The UMT5 encoder against transformers (recorded), the bucket table and closed forms."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from helios_jax import load_diffusers
from helios_jax.config import TextEncoderConfig
from helios_jax.models.layers import rms_norm
from helios_jax.models.text_encoder import T5Norm, Umt5Encoder, relative_buckets

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data" / "text_encoder"


@functools.cache
def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / name / "io.npz") as arrays:
        return dict(arrays)


@functools.cache
def encode(name: str, dtype: str):
    encoder = load_diffusers(DATA / name, "text_encoder", dtype=dtype)
    graphdef, state = nnx.split(encoder)
    return jax.jit(lambda token_ids, mask: nnx.merge(graphdef, state)(token_ids, mask))


@pytest.mark.parametrize("name", ["wide", "narrow"])
def test_last_hidden_state_equals_transformers(name):
    io = recorded(name)
    hidden = encode(name, "float32")(io["token_ids"], io["mask"])
    assert hidden.dtype == jnp.float32
    np.testing.assert_allclose(hidden, io["hidden"], atol=3e-5)


@pytest.mark.parametrize("name", ["wide", "narrow"])
def test_bfloat16_rounds_no_more_than_transformers(name):
    io = recorded(name)
    hidden = encode(name, "bfloat16")(io["token_ids"], io["mask"])
    assert hidden.dtype == jnp.bfloat16
    error = np.abs(hidden.astype(jnp.float32) - io["hidden"])[io["mask"]]
    allowed = np.abs(io["hidden_bfloat16"] - io["hidden"])[io["mask"]]
    assert error.mean() < 1.1 * allowed.mean()
    assert error.max() < 1.5 * allowed.max()


def test_fresh_parameters_have_the_spreads_of_t5():
    config = TextEncoderConfig(vocab_size=500, d_model=96, num_layers=3, num_heads=6, d_kv=32, d_ff=256)
    state = nnx.to_flat_state(nnx.state(Umt5Encoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    spreads = {".".join(path[-2:]): float(value[...].std()) for path, value in state}
    expected = {
        "shared.embedding": 1.0,
        "q.kernel": (96 * 32) ** -0.5,
        "k.kernel": 96**-0.5,
        "v.kernel": 96**-0.5,
        "o.kernel": (6 * 32) ** -0.5,
        "relative_attention_bias.embedding": 96**-0.5,
        "wi_0.kernel": 96**-0.5,
        "wi_1.kernel": 96**-0.5,
        "wo.kernel": 256**-0.5,
    }
    for name, spread in expected.items():
        np.testing.assert_allclose(spreads[name], spread, rtol=0.05, err_msg=name)


def test_padding_reaches_no_token():
    io = recorded("narrow")
    token_ids, mask = io["token_ids"], io["mask"]
    hidden = encode("narrow", "float32")(token_ids, mask)
    noisy = np.where(mask, token_ids, 7)
    np.testing.assert_array_equal(encode("narrow", "float32")(noisy, mask)[mask], hidden[mask])
    short = encode("narrow", "float32")(token_ids[:1, :12], mask[:1, :12])
    np.testing.assert_allclose(short[0], hidden[0, :12], atol=1e-5)


def test_integer_masks_are_masks():
    io = recorded("narrow")
    hidden = encode("narrow", "float32")(io["token_ids"], io["mask"].astype(np.int32))
    np.testing.assert_array_equal(hidden, encode("narrow", "float32")(io["token_ids"], io["mask"]))


def test_published_size():
    abstract = nnx.eval_shape(lambda: Umt5Encoder(TextEncoderConfig.umt5_xxl(), rngs=nnx.Rngs(0)))
    leaves = nnx.to_flat_state(nnx.state(abstract))
    assert sum(math.prod(leaf.shape) for _, leaf in leaves) == 5_680_910_336
    tensors = [leaf.shape[0] if path[:2] == ("encoder", "block") else 1 for path, leaf in leaves]
    assert sum(tensors) == 242
    assert {leaf.dtype for _, leaf in leaves} == {jnp.dtype("bfloat16")}


def test_every_layer_has_its_own_parameters():
    state = nnx.state(Umt5Encoder(TextEncoderConfig.tiny(), dtype="float32", rngs=nnx.Rngs(0)))
    for path, leaf in nnx.to_flat_state(state["encoder"]["block"]):
        if path[-1] != "scale":
            assert jnp.abs(leaf[0] - leaf[1]).max() > 0.01, path


def test_buckets_of_the_published_model():
    offsets = [-600, -128, -64, -33, -17, -16, -15, -9, -8, -7, -1, 0, 1, 7, 8, 15, 16, 33, 64, 128]
    wanted = [15, 15, 14, 12, 10, 10, 9, 8, 8, 7, 1, 0, 17, 23, 24, 25, 26, 28, 30, 31]
    assert relative_buckets(np.array(offsets), TextEncoderConfig.umt5_xxl()).tolist() == wanted


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 20), (16, 64), (64, 256)])
def test_buckets_equal_transformers(buckets, distance):
    config = TextEncoderConfig(num_buckets=buckets, max_distance=distance)
    with np.load(DATA / "buckets.npz") as arrays:
        offsets = arrays["offsets"].astype(np.int32)
        np.testing.assert_array_equal(relative_buckets(offsets, config), arrays[f"{buckets}_{distance}"])


def test_norm_rounds_before_the_weight():
    x, scale = np.random.default_rng(0).normal(size=(2, 64, 96)).astype(ml_dtypes.bfloat16)
    norm = T5Norm(96, 1e-6, param_dtype="bfloat16")
    norm.scale[...] = jnp.asarray(scale[0])
    x64 = x.astype(np.float64)
    normed = (x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-6)).astype(ml_dtypes.bfloat16)
    wanted = (normed.astype(np.float64) * scale[0].astype(np.float64)).astype(ml_dtypes.bfloat16)
    got = np.asarray(norm(jnp.asarray(x)))
    assert (got == wanted).mean() > 0.999
    assert (np.asarray(rms_norm(jnp.asarray(x), jnp.asarray(scale[0]), 1e-6)) == wanted).mean() < 0.9


def test_configuration_is_that_of_transformers():
    config = TextEncoderConfig.from_diffusers(json.loads((DATA / "narrow/text_encoder/config.json").read_text()))
    assert (config.num_heads * config.d_kv, config.d_model) == (24, 40)
    assert (config.num_buckets, config.max_distance, config.eps) == (16, 20, 1e-6)
