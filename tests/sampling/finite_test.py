"""A chunk that is not finite is never handed out: the error names the chunk and the first part that went wrong."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helios_jax as hx
from helios_jax.models.network import Network
from helios_jax.sampling import chunk as chunk_module
from helios_jax.sampling.finite import all_finite

SMALL = {"height": 64, "width": 64, "steps": (1, 1, 1), "max_text_tokens": 8}


def damaged(network: Network, part: str, value: float) -> Network:
    """A copy with one value, or for finite values all, of the first parameter whose path contains ``part`` replaced."""
    done = []

    def damage(path: tuple, leaf: jax.Array) -> jax.Array:
        if done or part not in jax.tree_util.keystr(path):
            return leaf
        done.append(path)
        return jnp.full_like(leaf, value) if np.isfinite(value) else leaf.at[(0,) * leaf.ndim].set(value)

    params = jax.tree_util.tree_map_with_path(damage, network.params)
    assert done, part
    return dataclasses.replace(network, params=params)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.usefixtures("undecoded")
def test_weights_of_the_transformer(distilled, value):
    pipe = dataclasses.replace(distilled, transformer=damaged(distilled.transformer, "ffn", value))
    with pytest.raises(FloatingPointError, match=r"^chunk 0, level 0: the latents are not finite: the transformer's"):
        pipe("a fox", num_frames=33, progress=False, **SMALL)


def test_weights_of_the_decoder(distilled):
    """Finite latents that are decoded to NaN or infinity: pixels would hide both, as black and as white."""
    for part, value in (("conv_in", float("nan")), ("conv_out", float("inf"))):
        pipe = dataclasses.replace(distilled, vae=damaged(distilled.vae, f"decoder']['{part}", value))
        with pytest.raises(
            FloatingPointError, match=r"^chunk 0: the frames are not finite, though the latents are: the"
        ):
            pipe("a fox", num_frames=33, progress=False, **SMALL)


@pytest.mark.usefixtures("undecoded")
def test_weights_of_the_encoders(distilled):
    encoder = dataclasses.replace(
        distilled.text_encoder, encoder=damaged(distilled.text_encoder.encoder, "final_layer_norm", float("nan"))
    )
    with pytest.raises(FloatingPointError, match=r"^chunk 0: the text embeddings are not finite: the text encoder's"):
        dataclasses.replace(distilled, text_encoder=encoder)("a fox", num_frames=33, progress=False, **SMALL)
    pipe = dataclasses.replace(distilled, vae=damaged(distilled.vae, "encoder']['conv_in", float("nan")))
    with pytest.raises(FloatingPointError, match=r"^chunk 0: the latents of the image or clip are not finite: the VAE"):
        pipe("a fox", image=np.zeros((64, 64, 3), np.uint8), num_frames=33, progress=False, **SMALL)


class NanIn:
    """The noise of seed 0, with a NaN in one draw."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.noise = hx.KeyNoise.from_seed(0)
        self.uniform = self.noise.uniform

    def normal(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        draw = self.noise.normal(name, shape)
        return draw.at[(0,) * draw.ndim].set(jnp.nan) if name == self.name else draw


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.usefixtures("undecoded")
def test_error_names_chunk_and_level_after_the_chunks_before(distilled, lookahead):
    stream = distilled.stream("a fox", num_frames=132, noise=NanIn("chunk2/block1"), lookahead=lookahead, **SMALL)
    expected = list(distilled.stream("a fox", num_frames=66, **SMALL))
    for chunk in expected:
        np.testing.assert_array_equal(next(stream).latents, chunk.latents)
    for _ in range(2):  # and it stays that way
        with pytest.raises(FloatingPointError, match=r"^chunk 2, level 1: the latents are not finite"):
            next(stream)


@pytest.mark.usefixtures("undecoded")
def test_checks_wait_for_nothing(distilled, monkeypatch):
    """Steps of the next chunk are dispatched before any verdict is read: one fetch per chunk holds everything."""
    fetched = []
    fetch: Callable = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(len(jax.tree.leaves(tree))) or fetch(tree))
    list(distilled.stream("a fox", num_frames=99, **SMALL))
    # Pixels, latents, the text, three levels and the decoder's values.
    assert fetched == [7, 7, 7]


def test_all_finite():
    tree = {"a": jnp.ones((2, 3)), "b": jnp.zeros((), jnp.bfloat16)}
    assert all_finite(tree)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not all_finite(tree | {"b": jnp.full((), bad, jnp.bfloat16)})
        assert not all_finite(tree | {"a": tree["a"].at[1, 2].set(bad)})


@pytest.mark.usefixtures("undecoded")
def test_one_program_per_size(distilled, compiled):
    """The checks compile one small program for each level, and nothing in later calls."""
    chunk_module.all_finite.clear_cache()
    distilled("a fox", num_frames=33, progress=False, **SMALL)
    assert compiled.count("jit(all_finite)") == 4
    compiled.clear()
    distilled("a dog", num_frames=66, seed=2, progress=False, **SMALL)
    assert compiled == []
