"""Small networks and batches that the tests of the methods share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.checkpoints.random import random_network
from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.parallel.execution import Execution, Scanned
from helios_jax.training.batch import LatentBatch, PromptBatch
from helios_jax.training.networks import Networks

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
LAYOUT = HistoryConfig(sizes=(4, 2, 1), chunk_frames=3)
"""7 frames of history and chunks of 3: small, and not the published numbers."""

SIZE = (8, 8)
EXECUTION = Execution(layers=Scanned())


def keys(batch: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), batch)


def latent_batch(batch: int, seed: int = 0, dtype: str = "float32") -> LatentBatch:
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.standard_normal((batch, *shape)), dtype)

    return LatentBatch(
        target=normal(3, *SIZE, 4),
        history=normal(7, *SIZE, 4),
        anchor=normal(1, *SIZE, 4),
        text=PromptBatch(embeds=normal(5, 32)),
    )


def draw_parameter(mean: float, std: float, shape: tuple[int, ...], dtype) -> jax.Array:
    generator = np.random.default_rng(sum(shape))
    return jnp.asarray(mean + std * generator.standard_normal(shape), dtype)


def networks(dtype: str = "float32") -> Networks:
    return Networks(transformer=random_network(HeliosTransformer, CONFIG, dtype, draw_parameter).module)


def silent_networks() -> Networks:
    """Networks that predict velocity zero, so that losses have closed forms."""
    silent = networks()
    silent.transformer.proj_out.kernel[...] = jnp.zeros_like(silent.transformer.proj_out.kernel[...])
    return silent


def draw(method, batch: LatentBatch, keys: jax.Array):
    """``method.draw``, compiled once per method and shape."""
    return _draw(method, keys, batch)


def loss(method, module: Networks, batch: LatentBatch, draws):
    """``method.loss_from_draws``, compiled once per method and shape."""
    return _loss(method, *nnx.split(module), batch, draws)


def value_and_grad(method, module: Networks, batch: LatentBatch, draws):
    """The loss and its gradient by parameter path."""
    graph, state = nnx.split(module)
    value, gradient = _value_and_grad(method, graph, state, batch, draws)
    return value, {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(gradient)}


def sample(tree, index: int):
    """One sample of a batch or its draws, as a batch of one."""
    return jax.tree.map(lambda x: x[index : index + 1], tree)


@functools.partial(jax.jit, static_argnums=0)
def _draw(method, keys, batch):
    return method.draw(Networks(), batch, keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss(method, graph, state, batch, draws):
    return method.loss_from_draws(nnx.merge(graph, state), batch, draws, EXECUTION)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value_and_grad(method, graph, state, batch, draws):
    return jax.value_and_grad(lambda state: _loss(method, graph, state, batch, draws)[0])(state)
