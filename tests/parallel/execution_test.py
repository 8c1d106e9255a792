"""However the blocks are run, the network computes the same; the text may be projected before or in the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.context import Tiers
from helios_jax.models import HeliosTransformer
from helios_jax.parallel.execution import SAMPLING, Execution, Resident, Scanned

CONFIG = TransformerConfig.tiny()
REMATS = ("none", "attention", "full", "offload")
FORMS = {"resident": Execution(layers=Resident())} | {remat: Execution(layers=Scanned(remat=remat)) for remat in REMATS}


@pytest.fixture(scope="module")
def inputs():
    """Network, latents, output of a text encoder, and history."""
    generator = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    frames = {"long": 16, "mid": 2, "short": 2}
    tiers = {name: normal(1, count, 8, 8, CONFIG.in_channels) for name, count in frames.items()}
    graph, state = nnx.split(HeliosTransformer(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    return graph, state, normal(1, 9, 8, 8, CONFIG.in_channels), normal(1, 7, CONFIG.text_dim), Tiers(**tiers)


def gradients(inputs, execution):
    """The output, and the gradients of its mean square with respect to parameters, latents and text."""
    graph, state, latents, text, tiers = inputs

    def loss(state, latents, text):
        out = nnx.merge(graph, state)(latents, jnp.array([300.0]), text, tiers, HistoryConfig(), execution=execution)
        return (out**2).mean(), out

    found, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(state, latents, text)
    return out, jax.tree.leaves(found)


@pytest.fixture(scope="module")
def expected(inputs):
    return gradients(inputs, SAMPLING)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_gradients_are_equal(inputs, expected, form):
    out, found = gradients(inputs, FORMS[form])
    np.testing.assert_allclose(out, expected[0], atol=1e-5 * float(jnp.abs(expected[0]).max()))
    for one, other in zip(found, expected[1], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * max(float(jnp.abs(other).max()), 1e-3))


@pytest.mark.parametrize("form", ["resident", pytest.param("none", marks=pytest.mark.slow)])
def test_three_programs_equal_one(inputs, form):
    """Tokens, blocks and velocity may each be a separate program; the text is projected once, before them."""
    graph, state, latents, embeds, tiers = inputs
    execution, timestep = FORMS[form], jnp.array([300.0])

    def model(state):
        return nnx.merge(graph, state)

    @jax.jit
    def prepare(state):
        whole = model(state)
        rope = whole.rope(HistoryConfig(), (8, 8), (8, 8), 9)
        return whole.text_context(embeds), whole.context(tiers), rope

    text, context, rope = prepare(state)
    call = {"text": text, "context": context, "rope": rope}
    whole = jax.jit(lambda state: model(state).denoise(latents, timestep, execution=execution, **call))(state)
    tokens = jax.jit(lambda state: model(state).embed(latents, timestep, context=context, rope=rope))(state)
    residual = jax.jit(lambda state, tokens: model(state).run_blocks(tokens, text, execution))(state, tokens)
    parts = jax.jit(lambda state, *args: model(state).velocity(*args))(state, residual, tokens)
    np.testing.assert_allclose(parts, whole, atol=1e-6 * float(jnp.abs(whole).max()))
