"""However the blocks are run, the network computes the same, and taps are the streams of an unrolled loop.

The text may be projected before the blocks or in them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.context import Tiers
from helios_jax.models import HeliosTransformer
from helios_jax.models.blocks import BlockLayer, Conditions
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


RAGGED = (6, 8)
"""Latent sides whose 140 tokens are padded to 144."""

TAPS = (0, 1)
"""The first and the last of two blocks."""


@pytest.fixture(scope="module")
def tapped(inputs):
    """The network, latents of ragged size, embedded text and history."""
    generator = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    tiers = Tiers(**{name: normal(1, frames, *RAGGED, 16) for name, frames in (("long", 16), ("mid", 2), ("short", 2))})
    return *inputs[:2], normal(1, 9, *RAGGED, 16), normal(1, 7, CONFIG.dim), tiers


def denoise(tapped, execution, state=None, latents=None, **options):
    """One call of the network, with another state or other latents."""
    graph, default_state, default_latents, text, tiers = tapped
    model = nnx.merge(graph, default_state if state is None else state)
    rope = model.rope(HistoryConfig(), RAGGED, RAGGED, 9)
    latents = default_latents if latents is None else latents
    call = {"text": text, "context": model.context(tiers), "rope": rope, "execution": execution}
    return model.denoise(latents, jnp.array([300.0]), **call, **options)


@pytest.fixture(scope="module")
def streams(tapped):
    """The velocity, and the streams of current tokens after all blocks, which run one by one."""
    graph, state, latents, text, tiers = tapped

    @jax.jit
    def embed(state):
        model = nnx.merge(graph, state)
        rope = model.rope(HistoryConfig(), RAGGED, RAGGED, 9)
        return model.embed(latents, jnp.array([300.0]), context=model.context(tiers), rope=rope)

    tokens = embed(state)
    first, last = tokens.num_history, tokens.num_history + tokens.num_current
    assert tokens.x.shape[1] > last, "there is padding"
    blocks, layers = nnx.split(nnx.merge(graph, state).blocks)
    block = BlockLayer(graph=blocks, num_history=first, num_tokens=last)
    constants = Conditions(modulation=tokens.modulation, rope=tokens.rope, text=text)
    run = jax.jit(lambda x, one: block.total(block(block.settled(x), (one, None), constants)))
    x, found = tokens.x, []
    for index in range(2):
        x = run(x, jax.tree.map(lambda stack, index=index: stack[index], layers))
        found.append(x[:, first:last])
    velocity = jax.jit(lambda x, state: nnx.merge(graph, state).velocity(block.settled(x[:, first:]), tokens))
    return velocity(x, state), jnp.stack(found)


@pytest.mark.parametrize("form", ["resident", *(pytest.param(remat, marks=pytest.mark.slow) for remat in REMATS)])
def test_taps_are_the_streams_of_an_unrolled_loop(tapped, streams, form):
    velocity, hidden = jax.jit(lambda state: denoise(tapped, FORMS[form], state, taps=TAPS))(tapped[1])
    assert hidden.shape == (2, 1, 9 * 3 * 4, CONFIG.dim)
    np.testing.assert_allclose(hidden, streams[1], atol=1e-5 * float(jnp.abs(streams[1]).max()))
    np.testing.assert_allclose(velocity, streams[0], atol=1e-5 * float(jnp.abs(streams[0]).max()))


def tapped_gradients(tapped, execution):
    """Gradients of a function of velocity and streams with respect to parameters and latents."""

    def loss(state, latents):
        velocity, hidden = denoise(tapped, execution, state, latents, taps=TAPS)
        return (velocity**2).mean() + jnp.sin(hidden).mean()

    return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(tapped[1], tapped[2]))


@pytest.fixture(scope="module")
def gradients_without_remat(tapped):
    return tapped_gradients(tapped, FORMS["none"])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["resident", "full", "attention", "offload"])
def test_gradients_through_taps_and_velocity_are_equal(tapped, gradients_without_remat, form):
    found = tapped_gradients(tapped, FORMS[form])
    for one, other in zip(found, gradients_without_remat, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * max(float(jnp.abs(other).max()), 1e-3))


def test_taps_beyond_the_last_block_are_refused(tapped):
    with pytest.raises(ValueError, match=r"taps=\(0, 2\) must be increasing numbers of layers, from 0 to 1"):
        jax.eval_shape(lambda: denoise(tapped, SAMPLING, taps=(0, 2)))
