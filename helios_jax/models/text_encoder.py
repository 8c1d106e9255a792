"""The UMT5 text encoder: T5 with gated GELU and one relative position table per block.

Each of the L blocks, with R the T5 norm (statistics over the model dimension, no mean, no bias):

    x <- x + O softmax(q k^T + b + mask) v,   (q, k, v) = (Q, K, V) R(x)                          (1)
    x <- x + W_o ( gelu(W_0 y) * (W_1 y) ),   y = R(x)                                            (2)
    R(x) = w * cast( x / sqrt(mean(x^2) + eps) )                                                  (3)

The scores of (1) are not divided by sqrt(K): Q is initialised smaller by that factor and embeddings with variance 1,
as in T5. (With other variances a new encoder mixes its tokens before they mean anything.) The bias b of a query at
i and a key at j is row bucket(j - i) of the block's table: one half of the rows for j > i, the other half for j <= i;
in each half the first rows hold one distance each and the rest grow geometrically up to ``max_distance``.

Sources: T5 (Raffel et al. 2020, arXiv 1910.10683), umT5 (Chung et al. 2023, arXiv 2304.09151) and
``UMT5EncoderModel`` of transformers. Parameter paths keep its attribute names: the published
``encoder.block.3.layer.0.SelfAttention.q.weight`` is slice 3 of ``encoder.block.layer.0.SelfAttention.q.kernel``.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.config import TextEncoderConfig
from helios_jax.models.layers import linear, lookup, matmul_precision, stack_layers
from helios_jax.models.network import ConfiguredModule
from helios_jax.typing import Array, Bool, DType, Float, Int


def relative_buckets(offsets: Int[np.ndarray, "*S"], config: TextEncoderConfig) -> Int[np.ndarray, "*S"]:
    """Row of the bias table for each offset (key position - query position).

    Runs on the host in fp32, as the published model does: exact logarithms would put distances that lie on a
    bucket's edge in another bucket for some table sizes.
    """
    half = config.num_buckets // 2
    exact = half // 2
    distance = np.abs(offsets)
    log_ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    log_ratio = log_ratio / np.float32(math.log(config.max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + log_ratio.astype(np.int32), half - 1)
    return np.where(distance < exact, distance, far) + half * (offsets > 0)


class T5Norm(nnx.Module):
    """Equation (3). The normalised value is rounded to the weight's dtype before the product, unlike ``rms_norm``."""

    def __init__(self, features: int, eps: float, *, param_dtype: DType) -> None:
        self.scale = nnx.Param(jnp.ones((features,), param_dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.scale[...]
        x = x.astype(jnp.float32)
        normed = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return scale * normed.astype(scale.dtype)


class RelativeAttention(nnx.Module):
    """Attention of equation (1) with this block's own table of relative position biases."""

    def __init__(self, config: TextEncoderConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs) -> None:
        inner = config.num_heads * config.d_kv
        options = {"bias": False, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q = linear(config.d_model, inner, std=(config.d_model * config.d_kv) ** -0.5, **options)
        self.k = linear(config.d_model, inner, **options)
        self.v = linear(config.d_model, inner, **options)
        self.o = linear(inner, config.d_model, **options)
        self.relative_attention_bias = nnx.Embed(
            config.num_buckets,
            config.num_heads,
            param_dtype=param_dtype,
            embedding_init=nnx.initializers.normal(config.d_model**-0.5),
            rngs=rngs,
        )
        self.num_heads = config.num_heads
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "B S D"], buckets: Int[Array, "S S"], mask: Bool[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        q, k, v = (project(x).reshape(*x.shape[:2], self.num_heads, -1) for project in (self.q, self.k, self.v))
        bias = lookup(self.relative_attention_bias.embedding[...].astype(jnp.float32), buckets)
        precision = matmul_precision(self.dtype)
        scores = jnp.einsum("bqnk,bsnk->bnqs", q, k, precision=precision, preferred_element_type=jnp.float32)
        scores = scores + bias.transpose(2, 0, 1)
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        mixed = jnp.einsum("bnqs,bsnk->bqnk", weights, v, precision=precision)
        return self.o(mixed.reshape(*x.shape[:2], -1))


class GatedFeedForward(nnx.Module):
    """Feed-forward of equation (2), with the tanh approximation of GELU."""

    def __init__(self, config: TextEncoderConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs) -> None:
        options = {"bias": False, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.wi_0 = linear(config.d_model, config.d_ff, **options)
        self.wi_1 = linear(config.d_model, config.d_ff, **options)
        self.wo = linear(config.d_ff, config.d_model, **options)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class AttentionLayer(nnx.Module):
    """Residual layer of equation (1); ``layer.0`` of a published block."""

    def __init__(self, config: TextEncoderConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs) -> None:
        self.SelfAttention = RelativeAttention(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.layer_norm = T5Norm(config.d_model, config.eps, param_dtype=param_dtype)

    def __call__(
        self, x: Float[Array, "B S D"], buckets: Int[Array, "S S"], mask: Bool[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        return x + self.SelfAttention(self.layer_norm(x), buckets, mask)


class FeedForwardLayer(nnx.Module):
    """Residual layer of equation (2); ``layer.1`` of a published block."""

    def __init__(self, config: TextEncoderConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs) -> None:
        self.DenseReluDense = GatedFeedForward(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.layer_norm = T5Norm(config.d_model, config.eps, param_dtype=param_dtype)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nnx.Module):
    """One block: attention, then feed-forward."""

    def __init__(self, config: TextEncoderConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs) -> None:
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.layer: Any = nnx.List([AttentionLayer(config, **options), FeedForwardLayer(config, **options)])

    def __call__(
        self, x: Float[Array, "B S D"], buckets: Int[Array, "S S"], mask: Bool[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        attention, feed_forward = self.layer
        return feed_forward(attention(x, buckets, mask))


class BlockStack(nnx.Module):
    """L blocks with parameters stacked on a leading axis, run by one ``scan``, and the last norm."""

    def __init__(self, config: TextEncoderConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs) -> None:
        types = {"dtype": dtype, "param_dtype": param_dtype}
        self.block = stack_layers(lambda rngs: Block(config, **types, rngs=rngs), config.num_layers, rngs)
        self.final_layer_norm = T5Norm(config.d_model, config.eps, param_dtype=param_dtype)

    def __call__(
        self, x: Float[Array, "B S D"], buckets: Int[Array, "S S"], mask: Bool[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        graphdef, layers = nnx.split(self.block)
        x, _ = jax.lax.scan(lambda x, layer: (nnx.merge(graphdef, layer)(x, buckets, mask), None), x, layers)
        return self.final_layer_norm(x)


class Umt5Encoder(ConfiguredModule):
    """UMT5 encoder (``UMT5EncoderModel`` of transformers): token ids to the last hidden state.

    Args:
        config: Sizes.
        dtype: Compute dtype; norm statistics and the softmax are always fp32.
        param_dtype: Dtype of every parameter; ``dtype`` when None.
        rngs: Source of the initial parameters.
    """

    def __init__(
        self,
        config: TextEncoderConfig,
        *,
        dtype: DType = jnp.bfloat16,
        param_dtype: DType | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        param_dtype = param_dtype or dtype
        self.config = config
        self.dtype = dtype
        self.shared = nnx.Embed(
            config.vocab_size,
            config.d_model,
            dtype=dtype,
            param_dtype=param_dtype,
            embedding_init=nnx.initializers.normal(1.0),
            rngs=rngs,
        )
        self.encoder = BlockStack(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self, token_ids: Int[Array, "B S"], mask: Bool[Array, "B S"] | Int[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        """Encodes padded token ids.

        Args:
            token_ids: Ids below ``config.vocab_size``.
            mask: Nonzero for tokens, zero for padding. Padding is not attended to; what the encoder returns at
                padded positions is as meaningless as in transformers, and is not zero.

        Returns:
            The last hidden state, in ``dtype``.
        """
        length = token_ids.shape[1]
        by_offset = jnp.asarray(relative_buckets(np.arange(1 - length, length), self.config))
        positions = jnp.arange(length)
        buckets = by_offset[positions[None, :] - positions[:, None] + length - 1]
        embeds = lookup(self.shared.embedding[...].astype(self.dtype), token_ids)
        return self.encoder(embeds, buckets, mask.astype(bool)).astype(self.dtype)
