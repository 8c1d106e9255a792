"""Embeddings of timestep and text at model width, which condition a network call."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.config import TransformerConfig
from helios_jax.models.layers import linear
from helios_jax.typing import Array, DType, Float


class TwoLayer(nnx.Module):
    """linear_1, activation, linear_2: the time and text embedders."""

    def __init__(self, in_features: int, dim: int, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        self.linear_1 = linear(in_features, dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.linear_2 = linear(dim, dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


class ConditionEmbedder(nnx.Module):
    """Timestep and text embeddings; the time MLP stays fp32 as published."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        dim, types = config.dim, {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.time_embedder = TwoLayer(config.freq_dim, dim, dtype=jnp.float32, param_dtype=jnp.float32, rngs=rngs)
        self.time_proj = linear(dim, 6 * dim, **types)
        self.text_embedder = TwoLayer(config.text_dim, dim, **types)
        self.freq_dim = config.freq_dim
        self.dtype = dtype

    def time(self, timestep: Float[Array, " B"]) -> tuple[Float[Array, "B D"], Float[Array, "B 6 D"]]:
        """The time embedding and the six modulation vectors computed from it, in the compute dtype."""
        embedding = self.time_embedder.linear_1(timestep_features(timestep, self.freq_dim))
        embedding = self.time_embedder.linear_2(jax.nn.silu(embedding)).astype(self.dtype)
        modulation = self.time_proj(jax.nn.silu(embedding))
        return embedding, modulation.reshape(modulation.shape[0], 6, -1)

    def text(self, embeds: Float[Array, "B S E"]) -> Float[Array, "B S D"]:
        """Text at model width. As in the published model, padding is embedded and attended to like text."""
        return self.text_embedder.linear_2(self.text_embedder.linear_1(embeds, activation="gelu"))


def timestep_features(timestep: Float[Array, " B"], features: int) -> Float[Array, "B E"]:
    """Sinusoidal features [cos, sin] of t 10000^(-i / (features/2)), fp32.

    The exponents are rounded to fp32 as published. Their powers are computed on the host and rounded correctly:
    compilers' ``exp`` functions differ in the last place, which moves an angle by 6e-5 at t = 1000.
    """
    half = features // 2
    exponents = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = timestep.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
