"""The judge: a small denoiser with heads, on crops with a context of full size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helios_jax.checkpoints.random import random_network
from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.context import History
from helios_jax.distillation.gan import Gan, gan_cotangent, gan_loss
from helios_jax.distillation.judge import judge_clips
from helios_jax.models.discriminator import Discriminator, DiscriminatorConfig
from helios_jax.models.lora import add_lora
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.parallel.execution import Execution, Scanned

pytestmark = pytest.mark.slow

FULL = (16, 16)
LAYOUT = HistoryConfig(sizes=(4, 2, 1), chunk_frames=4)
CONFIG = TransformerConfig(
    num_heads=2,
    head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=32,
    freq_dim=16,
    ffn_dim=32,
    num_layers=1,
    rope_dim=(4, 6, 6),
)
HEADS = DiscriminatorConfig(hooks=(0,), width=4, groups=2)
EXECUTION = Execution(layers=Scanned(remat="full"))
TIMESTEP, SIGMA = jnp.array([815.0, 340.0]), jnp.array([0.8, 0.3])


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def draw_parameter(mean: float, std: float, shape: tuple[int, ...], dtype) -> jax.Array:
    return jnp.asarray(mean + std * np.random.default_rng(sum(shape)).standard_normal(shape), dtype)


@pytest.fixture(scope="module")
def networks():
    """A denoiser with adapters, and its heads."""
    transformer = random_network(HeliosTransformer, CONFIG, "float32", draw_parameter).module
    transformer = add_lora(transformer, rank=2, targets=("blocks/.*",), key=jax.random.key(0))
    heads = nnx.split(nnx.eval_shape(lambda: Discriminator(HEADS, 32, 4, dtype="float32", rngs=nnx.Rngs(0))))
    state = jax.tree.map(lambda leaf: 0.3 * normal(sum(leaf.shape), *leaf.shape), heads[1])
    return transformer, nnx.merge(heads[0], state)


def context_of(transformer, samples=slice(None)):
    """Embedded text and history of two samples, or of some of them."""
    history = History(frames=normal(5, 2, 7, *FULL, 4), anchor=normal(6, 2, 1, *FULL, 4))
    text = transformer.condition_embedder.text(normal(3, 2, 5, 32))
    context = transformer.context(history.tiers(LAYOUT))
    return text[samples], dataclasses.replace(context, tokens=context.tokens[samples])


def judge(networks, x, timestep, samples=slice(None)):
    transformer, discriminator = networks
    text, context = context_of(transformer, samples)
    call = {"text": text, "context": context, "layout": LAYOUT, "full": FULL, "execution": EXECUTION}
    return judge_clips(transformer, discriminator, x, timestep, **call)


def test_several_clips_per_sample_are_judged_one_by_one(networks):
    """With the text and context of their sample, and with positions that start at 0."""
    transformer, discriminator = networks
    crops, timestep = normal(8, 4, 4, 8, 8, 4), jnp.repeat(TIMESTEP, 2)
    together = nnx.jit(judge)(networks, crops, timestep)
    assert together.shape == (4, 2)

    @nnx.jit
    def alone(networks, number, sample):
        text, context = context_of(networks[0])
        text, tokens = text[sample][None], context.tokens[sample][None]
        velocity, hidden = networks[0].denoise(
            crops[number][None],
            TIMESTEP[sample][None],
            text=text,
            context=dataclasses.replace(context, tokens=tokens),
            rope=networks[0].rope(LAYOUT, FULL, (8, 8), 4),
            execution=EXECUTION,
            taps=(0,),
        )
        # Token number 16 f + 4 row + column is the one at (f, row, column).
        grids = jnp.stack(
            [hidden[:, :, 16 * f + 4 * row : 16 * f + 4 * row + 4] for f in range(4) for row in range(4)], axis=2
        ).reshape(1, 1, 4, 4, 4, 32)
        return networks[1](velocity, grids)[0]

    for number in (0, 3):
        expected = alone((transformer, discriminator), jnp.int32(number), jnp.int32(number // 2))
        np.testing.assert_allclose(together[number], expected, rtol=2e-4, atol=2e-5)


def test_gradients_of_both_sides(networks):
    """The cached gradient is the direct one, and the discriminator's loss reaches adapters and heads."""
    graph, state = nnx.split(networks)
    settings = Gan(heads=HEADS)
    shape = (4, *FULL, 4)
    keys = jax.random.split(jax.random.key(0), 2)

    def call(state, x, timestep, condition):
        return judge(nnx.merge(graph, state), x, timestep)

    common = {"timestep": TIMESTEP, "sigma": SIGMA, "condition": None, "settings": settings, "patch": (1, 2, 2)}
    draws = jax.vmap(lambda key: settings.draw_generator(key, shape))(keys)
    x = normal(1, 2, *shape)
    found, _ = jax.jit(lambda state, x: gan_cotangent(call, state, x, **common, draws=draws))(state, x)

    def direct(x):
        sigma = SIGMA[:, None, None, None, None]
        noised = (1 - sigma) * x + sigma * draws.noise
        starts = np.floor(np.asarray(draws.corner) * 9).astype(int)
        parts = jnp.stack([noised[n, :, a : a + 8, b : b + 8] for n, (a, b) in enumerate(starts)])
        return 0.05 * jax.nn.softplus(call(state, parts, TIMESTEP, None)).mean()

    expected = jax.jit(jax.grad(direct))(x)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))

    twins = jax.vmap(lambda key: settings.draw_discriminator(key, shape))(keys)

    def loss(state):
        clips = normal(1, 2, *shape), normal(2, 2, *shape)
        return gan_loss(call, state, *clips, noise=normal(3, 2, *shape), **common, draws=twins)

    gradients, metrics = jax.jit(jax.grad(loss, has_aux=True))(state)
    sizes = {
        jax.tree_util.keystr(path): float(jnp.abs(leaf).max()) for path, leaf in jax.tree.leaves_with_path(gradients)
    }
    adapters = [size for path, size in sizes.items() if "lora_b" in path]
    heads = [size for path, size in sizes.items() if "convs" in path and "kernel" in path]
    assert min(adapters) > 0
    assert min(heads) > 0
    assert len(adapters) >= 6
    assert len(heads) == 12  # six of the final head, six stacks of the hooks'
    assert np.isfinite(list(metrics.values())).all()
