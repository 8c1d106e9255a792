"""The transformer against outputs recorded from diffusers (tests/parity/record_transformer.py)."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import helios_jax as hx
from helios_jax.checkpoints.key_tables import TRANSFORMER, published_entries
from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.context import Tiers
from helios_jax.models.rope import flatten_grid, pool_grid, rope_grid

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data" / "transformer"


def channels_last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(np.moveaxis(x, 1, -1))


def load(case: str, dtype: str):
    arrays = dict(np.load(DATA / case / "case.npz"))
    tiers = Tiers(**{tier: channels_last(arrays[f"latents_history_{tier}"]) for tier in ("long", "mid", "short")})
    inputs = (channels_last(arrays["hidden_states"]), arrays["timestep"], arrays["encoder_hidden_states"])
    return hx.load_diffusers(DATA / case, "transformer", dtype=dtype), jax.tree.map(jnp.asarray, inputs), tiers, arrays


def run(model, *args):
    graph, state = nnx.split(model)
    return jax.jit(lambda state, *args: nnx.merge(graph, state)(*args))(state, *args)


def relative_error(ours, recorded: np.ndarray) -> float:
    """Largest absolute error in units of the recorded standard deviation."""
    return float(np.abs(np.asarray(ours, np.float32) - np.moveaxis(recorded, 1, -1)).max() / recorded.std())


@pytest.mark.parametrize("case", ["published", "ragged", "amplify", "plain"])
def test_forward_matches_diffusers(case):
    model, inputs, tiers, arrays = load(case, "float32")
    assert relative_error(run(model, *inputs, tiers), arrays["output"]) <= 1e-5


def test_forward_without_history_matches_diffusers():
    model, inputs, _, arrays = load("published", "float32")
    assert relative_error(run(model, *inputs), arrays["output_without_history"]) <= 1e-5


def test_bfloat16_forward_is_as_close_as_rounding_allows():
    """bf16 has a relative step of 2^-8; three blocks of roundings in another order stay within a few steps."""
    model, inputs, tiers, arrays = load("published", "bfloat16")
    ours = np.asarray(run(model, *inputs, tiers), np.float32)
    recorded = np.moveaxis(arrays["output_bf16"], 1, -1)
    exact = np.moveaxis(arrays["output"], 1, -1)
    assert np.abs(ours - recorded).max() / recorded.std() <= 0.1
    # Our bf16 result is no farther from the exact one than the recorded bf16 result is.
    assert np.square(ours - exact).mean() <= 1.5 * np.square(recorded - exact).mean()


def test_bfloat16_keeps_the_published_fp32_parameters():
    model = load("published", "bfloat16")[0]
    fp32 = {
        ".".join(map(str, path))
        for path, variable in nnx.to_flat_state(nnx.state(model))
        if variable.dtype == jnp.float32
    }
    assert fp32 == {
        "blocks.norm2.bias",
        "blocks.norm2.scale",
        "blocks.scale_shift_table",
        "condition_embedder.time_embedder.linear_1.bias",
        "condition_embedder.time_embedder.linear_1.kernel",
        "condition_embedder.time_embedder.linear_2.bias",
        "condition_embedder.time_embedder.linear_2.kernel",
        "norm_out.scale_shift_table",
    }


def test_helios_14b_has_the_published_tensors():
    """1101 tensors and 14,312,427,584 parameters, in the parts that the published files have."""
    abstract = nnx.eval_shape(lambda: hx.models.HeliosTransformer(TransformerConfig.helios_14b(), rngs=nnx.Rngs(0)))
    shapes = {name: entry.shape for name, entry in published_entries(abstract, TRANSFORMER).items()}

    def count(part: str) -> int:
        return sum(math.prod(shape) for name, shape in shapes.items() if part in name)

    assert len(shapes) == 1101
    assert count("") == 14_312_427_584
    assert count("attn1") == count("attn2") == 4_195_532_800
    assert count(".ffn.") == 5_663_068_160
    assert count("blocks") - count("attn") - count(".ffn.") == 1_228_800 + 409_600
    assert count("time_embedder") == 27_535_360
    assert shapes["patch_long.weight"] == (5120, 16, 4, 8, 8)
    assert shapes["blocks.39.ffn.net.2.weight"] == (5120, 13824)
    assert shapes["blocks.0.attn2.to_out.0.bias"] == (5120,)
    assert shapes["blocks.17.scale_shift_table"] == (1, 6, 5120)
    assert shapes["norm_out.scale_shift_table"] == (1, 2, 5120)
    fp32 = sum(math.prod(v.shape) for _, v in nnx.to_flat_state(nnx.state(abstract)) if v.dtype == jnp.float32)
    assert fp32 == 29_184_000


def test_rope_golden_values():
    """cos and sin measured from diffusers at the published size, channels of its 256-wide vector."""
    config = TransformerConfig.helios_14b()
    dims, theta = config.rope_dim, config.rope_theta

    def channels(vector: jax.Array, indices: list[int]) -> list[float]:
        cos, sin = np.repeat(np.asarray(vector), 2, axis=-1)  # each angle serves two adjacent channels
        return [float(np.concatenate([cos, sin])[i]) for i in indices]

    long, mid, _, current = HistoryConfig().frame_indices
    mid_grid = pool_grid(rope_grid(mid, 24, 40, dims, theta), 2)
    np.testing.assert_allclose(
        channels(mid_grid[0, 0, 0], [0, 2, 43, 44, 86, 128, 130]),
        [0.192577, 0.468804, 0.999996, 0.770151, 0.770151, -0.856192, -0.822102],
        atol=2e-6,
    )
    np.testing.assert_allclose(
        channels(mid_grid[0, 5, 7], [0, 44, 86, 128, 172, 214]),
        [0.192577, -0.417323, -0.311475, -0.856192, -0.772006, 0.820448],
        atol=2e-6,
    )
    long_tokens = flatten_grid(pool_grid(rope_grid(long, 24, 40, dims, theta), 4))
    assert long_tokens.shape == (240, 2, 64)
    wanted = [0, 2, 44, 86, 128, 172, 214]
    np.testing.assert_allclose(
        channels(long_tokens[0], wanted),
        [-0.379870, -0.055390, 0.033541, 0.033541, 0.283772, 0.472972, 0.472972],
        atol=2e-6,
    )
    np.testing.assert_allclose(
        channels(rope_grid(current, 6, 10, dims, theta)[0, 1, 1], wanted),
        [0.408082, 0.829662, 0.540302, 0.540302, 0.912945, 0.841471, 0.841471],
        atol=2e-6,
    )


@pytest.mark.slow
def test_pieces_equal_the_whole():
    """Text, context and rotary tables that are computed once give the same velocity as the one-call forward."""
    model, (latents, timestep, embeds), tiers, _ = load("published", "float32")
    whole = model(latents, timestep, embeds, tiers)
    rope = model.rope(HistoryConfig(), tiers.short.shape[2:4], latents.shape[2:4], latents.shape[1])
    pieces = model.denoise(latents, timestep, text=model.text_context(embeds), context=model.context(tiers), rope=rope)
    # Not bit for bit: on some CPUs programs that are compiled apart round in the last place.
    np.testing.assert_allclose(whole, pieces, atol=1e-5 * float(whole.std()))


@pytest.mark.slow
def test_one_key_for_all_padding_equals_a_key_for_each():
    model, (latents, timestep, embeds), tiers, _ = load("published", "float32")
    padded = jnp.pad(embeds, ((0, 0), (0, 9), (0, 0)))
    whole = model(latents, timestep, padded, tiers)
    rope = model.rope(HistoryConfig(), tiers.short.shape[2:4], latents.shape[2:4], latents.shape[1])
    text = model.text_context(padded, embeds.shape[1] + 2)
    assert (text.k.shape[2], text.last_key_count) == (embeds.shape[1] + 2, 8)
    one = model.denoise(latents, timestep, text=text, context=model.context(tiers), rope=rope)
    np.testing.assert_allclose(one, whole, atol=1e-5 * float(whole.std()))


def test_token_counts_at_the_published_size():
    """2400 history tokens and 540, 2160, 8640 current tokens at 384x640."""
    model = nnx.eval_shape(lambda: hx.models.HeliosTransformer(TransformerConfig.helios_14b(), rngs=nnx.Rngs(0)))
    rope = [
        jax.eval_shape(lambda size=size: model.rope(HistoryConfig(), (48, 80), size, 9)).shape[0]
        for size in ((12, 20), (24, 40), (48, 80))
    ]
    assert rope == [2940, 4560, 11040]


def test_chunk_of_another_length_is_refused():
    model, (latents, timestep, embeds), tiers, _ = load("published", "float32")
    with pytest.raises(ValueError, match=r"7 latent frames.*laid out for 9"):
        model(latents[:, :7], timestep, embeds, tiers)
