"""The start of stage 1 from Wan2.1, against a transformer that diffusers saved (tests/parity/record_wan.py)."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.checkpoints.wan import load_wan, pooling_kernel

WAN = pathlib.Path(__file__).parents[1] / "parity" / "data" / "wan"


@pytest.mark.slow
def test_without_history_it_is_wan():
    model = load_wan(WAN, dtype="float32")
    case = np.load(WAN / "case.npz")
    latents = jnp.asarray(np.moveaxis(case["hidden_states"], 1, -1))
    output = model(latents, jnp.asarray(case["timestep"]), jnp.asarray(case["encoder_hidden_states"]))
    expected = np.moveaxis(case["output"], 1, -1)
    assert np.abs(output - expected).max() / expected.std() <= 5e-5


@pytest.mark.parametrize(("patcher", "pool"), [("patch_short", 1), ("patch_mid", 2), ("patch_long", 4)])
def test_history_patchers_embed_the_pooled_history(patcher, pool):
    """Closed form: the patcher of x is the patch embedding of the means over pool x pool x pool positions."""
    model = load_wan(WAN, dtype="float32")
    x = jax.random.normal(jax.random.key(0), (2, 4, 16, 8, 16))
    b, t, h, w, c = x.shape
    pooled = x.reshape(b, t // pool, pool, h // pool, pool, w // pool, pool, c).mean((2, 4, 6))
    np.testing.assert_allclose(getattr(model, patcher)(x), model.patch_embedding(pooled), atol=2e-5)


def test_patchers_share_no_memory():
    """Trained parameters are donated, and nothing may be donated twice."""
    model = load_wan(WAN, dtype="float32")
    patchers = (model.patch_embedding, model.patch_short, model.patch_mid, model.patch_long)
    for arrays in ([p.kernel[...] for p in patchers], [p.bias[...] for p in patchers]):
        assert len({array.unsafe_buffer_pointer() for array in arrays}) == 4


def test_bf16_kernels_are_scaled_exactly():
    kernel = jax.random.normal(jax.random.key(0), (1, 2, 2, 3, 5)).astype(jnp.bfloat16)
    for pool in (2, 4):
        made = pooling_kernel(kernel, pool)
        assert made.shape == (pool, 2 * pool, 2 * pool, 3, 5)
        assert made.dtype == jnp.bfloat16
        np.testing.assert_array_equal(made[0, ::pool, ::pool] * pool**3, kernel[0])


def test_dtypes_are_those_of_helios():
    model = load_wan(WAN, dtype="bfloat16")
    assert model.patch_long.kernel[...].dtype == jnp.bfloat16
    assert model.condition_embedder.time_embedder.linear_1.kernel[...].dtype == jnp.float32
    assert model.config.rope_dim == (8, 4, 4)


def test_other_transformers_are_refused(tmp_path):
    shutil.copytree(WAN / "transformer", tmp_path / "transformer")
    file = tmp_path / "transformer" / "config.json"
    config = json.loads(file.read_text())
    for change in ({"_class_name": "HeliosTransformer3DModel"}, {"image_dim": 1280}):
        file.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match="text-to-video transformer of Wan2"):
            load_wan(tmp_path)
