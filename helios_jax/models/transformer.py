"""The Helios DiT: a Wan2.1 transformer over one sequence of history and current tokens.

Sequence order is  long | mid | short | current.  History tokens (clean, timestep 0) and current tokens
(noisy, timestep t) attend to each other in every block; text is attended to by current tokens only:

    x <- x + gate * Attention( LN(x) (1 + scale) + shift )         q, k: RMSNorm over all heads, RoPE    (1)
    x_current <- x_current + CrossAttention( LN(x_current), text )                                        (2)
    x <- x + gate' * FFN( LN(x) (1 + scale') + shift' )                                                   (3)

with (shift, scale, gate, shift', scale', gate') = table of the block + row of the token's timestep.
There are only two distinct rows per sample, history (t = 0) and current, and they are never expanded per
token in memory.

The forward pass is cut where its inputs change, so that nothing is computed twice:

    text_context   once per prompt    keys and values of the text for all blocks
    context        once per chunk     history tokens and the history's modulation row
    rope           once per size      rotary tables of all tokens of a level
    denoise        once per step      everything else

Source: arXiv 2603.04379; numerics as diffusers 0.42.1 ``HeliosTransformer3DModel``: norms, modulation, gates
and residual sums in fp32, everything between in the compute dtype.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.context import Tiers
from helios_jax.models.attention import attention
from helios_jax.models.layers import (
    LayerNormAffine,
    PatchEmbed,
    Scale,
    from_patches,
    layer_norm,
    linear,
    rms_norm,
    stack_layers,
)
from helios_jax.models.network import ConfiguredModule
from helios_jax.models.rope import RopeTable, apply_rope, flatten_grid, pool_grid, rope_grid
from helios_jax.typing import Array, DType, Float, Int

_MAX_HISTORY_SCALE = 10.0
"""Upper limit of the learned amplification of history keys."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextContext:
    """Projected text, ready to be attended to: of every block, or of one inside the scan over blocks."""

    k: Float[Array, "*L B S N K"]
    v: Float[Array, "*L B S N K"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """History of one chunk, ready to be joined with current tokens.

    Attributes:
        tokens: Patch embeddings of the long, mid and short tiers, in this order.
        rows: The six modulation vectors of timestep 0; they do not depend on the sample.
    """

    tokens: Float[Array, "B S D"]
    rows: Float[Array, "1 6 D"]


class Attention(nnx.Module):
    """Projections and norms of one attention layer."""

    def __init__(self, config: TransformerConfig, *, amplify: bool, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        dim = config.dim
        self.to_q, self.to_k, self.to_v, self.to_out = (
            linear(dim, dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs) for _ in range(4)
        )
        self.norm_q = Scale(dim, param_dtype=param_dtype)
        self.norm_k = Scale(dim, param_dtype=param_dtype)
        if amplify:
            heads = config.num_heads if config.history_scale_mode == "per_head" else 1
            self.history_key_scale = nnx.Param(jnp.ones((heads,), jnp.float32))
        self.num_heads = config.num_heads
        self.eps = config.eps

    def q(self, x: Float[Array, "B S D"]) -> Float[Array, "B S N K"]:
        """Normalised queries."""
        return self._heads(rms_norm(self.to_q(x), self.norm_q.scale[...], self.eps))

    def k(self, x: Float[Array, "B S D"]) -> Float[Array, "B S N K"]:
        """Normalised keys."""
        return self._heads(rms_norm(self.to_k(x), self.norm_k.scale[...], self.eps))

    def v(self, x: Float[Array, "B S D"]) -> Float[Array, "B S N K"]:
        """Values."""
        return self._heads(self.to_v(x))

    def out(self, x: Float[Array, "B S N K"]) -> Float[Array, "B S D"]:
        """Joins the heads and projects."""
        return self.to_out(x.reshape(*x.shape[:2], -1))

    def amplify(self, k: Float[Array, "B S N K"], num_history: int) -> Float[Array, "B S N K"]:
        """Scales the first ``num_history`` keys by the learned factor in (1, 10)."""
        factor = 1.0 + jax.nn.sigmoid(self.history_key_scale[...]) * (_MAX_HISTORY_SCALE - 1.0)
        history = jnp.arange(k.shape[1])[:, None, None] < num_history
        return (k.astype(jnp.float32) * jnp.where(history, factor[:, None], 1.0)).astype(k.dtype)

    def _heads(self, x: Float[Array, "B S D"]) -> Float[Array, "B S N K"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)


class FeedForward(nnx.Module):
    """Two linear layers with a tanh-approximated GELU between."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        self.proj_in = linear(config.dim, config.ffn_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.proj_out = linear(config.ffn_dim, config.dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return self.proj_out(jax.nn.gelu(self.proj_in(x), approximate=True))


class Block(nnx.Module):
    """One transformer block, equations (1) to (3)."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attn1 = Attention(config, amplify=config.is_amplify_history, **types)
        self.attn2 = Attention(config, amplify=False, **types)
        self.ffn = FeedForward(config, **types)
        if config.cross_attn_norm:
            self.norm2 = LayerNormAffine(config.dim, config.eps)
        self.scale_shift_table = nnx.Param(jax.random.normal(rngs.params(), (6, config.dim)) / math.sqrt(config.dim))
        self.config = config

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        text_k: Float[Array, "B S2 N K"],
        text_v: Float[Array, "B S2 N K"],
        history_rows: Float[Array, "B2 6 D"],
        current_rows: Float[Array, "B 6 D"],
        rope: RopeTable,
        num_history: int,
    ) -> Float[Array, "B S D"]:
        config = self.config
        is_current = (jnp.arange(x.shape[1]) >= num_history)[:, None]
        table = self.scale_shift_table[...]

        def row(i: int) -> Float[Array, "B S D"]:
            # Never materialised: XLA fuses the selection into the element-wise pass that uses it.
            history, current = (rows[:, i, None].astype(jnp.float32) for rows in (history_rows, current_rows))
            return jnp.where(is_current, table[i] + current, table[i] + history)

        def modulate(x: Array, shift: int, scale: int) -> Array:
            return (layer_norm(x, config.eps) * (1 + row(scale)) + row(shift)).astype(x.dtype)

        def add_gated(x: Array, update: Array, gate: int) -> Array:
            return (x.astype(jnp.float32) + update.astype(jnp.float32) * row(gate)).astype(x.dtype)

        y = modulate(x, shift=0, scale=1)
        q, k = apply_rope(self.attn1.q(y), rope), apply_rope(self.attn1.k(y), rope)
        if config.is_amplify_history:
            k = self.attn1.amplify(k, num_history)
        x = add_gated(x, self.attn1.out(attention(q, k, self.attn1.v(y))), gate=2)

        untouched = num_history if config.guidance_cross_attn else 0
        current = x[:, untouched:]
        y = self.norm2(current) if config.cross_attn_norm else current
        current = current + self.attn2.out(attention(self.attn2.q(y), text_k, text_v))
        x = jnp.concatenate([x[:, :untouched], current], axis=1)

        return add_gated(x, self.ffn(modulate(x, shift=3, scale=4)), gate=5)


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
        """The time embedding and the six modulation vectors made from it, in the compute dtype."""
        embedding = self.time_embedder.linear_1(timestep_features(timestep, self.freq_dim))
        embedding = self.time_embedder.linear_2(jax.nn.silu(embedding)).astype(self.dtype)
        rows = self.time_proj(jax.nn.silu(embedding))
        return embedding, rows.reshape(rows.shape[0], 6, -1)

    def text(self, embeds: Float[Array, "B S E"]) -> Float[Array, "B S D"]:
        """Text at model width. Padding is embedded and attended to like text: part of the model."""
        hidden = self.text_embedder.linear_1(embeds.astype(self.dtype))
        return self.text_embedder.linear_2(jax.nn.gelu(hidden, approximate=True))


def timestep_features(timestep: Float[Array, " B"], features: int) -> Float[Array, "B E"]:
    """[cos, sin] of t 10000^(-i / (features/2)), fp32."""
    half = features // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timestep.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class OutputTable(nnx.Module):
    """Shift and scale of the output norm."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.scale_shift_table = nnx.Param(jax.random.normal(rngs.params(), (2, dim)) / math.sqrt(dim))


class HeliosTransformer(ConfiguredModule):
    """Predicts the velocity of a noisy chunk from its context, the text and the timestep.

    Args:
        config: Sizes and switches.
        dtype: Compute dtype. The time MLP, the modulation tables, ``norm2`` and ``history_key_scale`` stay
            fp32 whatever it is.
        param_dtype: Dtype of the remaining parameters; ``dtype`` by default.
        rngs: Source of the initial parameters.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        dtype: DType = jnp.bfloat16,
        param_dtype: DType | None = None,
        rngs: nnx.Rngs,
    ):
        types = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype or dtype)}
        pt, ph, pw = config.patch_size
        self.patch_embedding = PatchEmbed(config.patch_size, config.in_channels, config.dim, **types, rngs=rngs)
        if config.has_multi_term_memory_patch:
            self.patch_short, self.patch_mid, self.patch_long = (
                PatchEmbed((factor * pt, factor * ph, factor * pw), config.in_channels, config.dim, **types, rngs=rngs)
                for factor in (1, 2, 4)
            )
        self.condition_embedder = ConditionEmbedder(config, **types, rngs=rngs)
        self.blocks = stack_layers(lambda rngs: Block(config, **types, rngs=rngs), config.num_layers, rngs)
        self.norm_out = OutputTable(config.dim, rngs=rngs)
        patch_features = config.velocity_channels * math.prod(config.patch_size)
        self.proj_out = linear(config.dim, patch_features, **types, rngs=rngs)
        self.config = config
        self.dtype = types["dtype"]

    def text_context(self, embeds: Float[Array, "B S E"]) -> TextContext:
        """Keys and values of the text in every block; constant over steps, levels and chunks."""
        text = self.condition_embedder.text(embeds)
        graph, state = nnx.split(self.blocks.attn2)

        def project(_: None, layer: nnx.State) -> tuple[None, TextContext]:
            attn = nnx.merge(graph, layer)
            return None, TextContext(k=attn.k(text), v=attn.v(text))

        return jax.lax.scan(project, None, state)[1]

    def context(self, tiers: Tiers) -> Context:
        """Patch embeddings of the history and its modulation rows; constant over the steps of a chunk."""
        streams = (
            self.patch_long(tiers.long.astype(self.dtype)),
            self.patch_mid(tiers.mid.astype(self.dtype)),
            self.patch_short(tiers.short.astype(self.dtype)),
        )
        tokens = jnp.concatenate([_flatten(stream) for stream in streams], axis=1)
        _, rows = self.condition_embedder.time(jnp.zeros((1,), jnp.float32))
        return Context(tokens=tokens, rows=rows)

    def rope(
        self, history: HistoryConfig | None, full: Sequence[int], current: Sequence[int], frames: int
    ) -> RopeTable:
        """Rotary table of all tokens.

        Args:
            history: Tiers and their frame indices; ``None`` for a clip without context.
            full: Latent (height, width) of the history, always the full size.
            current: Latent (height, width) of the current tokens: the level's size. Its grid has unit
                spacing whatever the level.
            frames: Latent frames of the current chunk.
        """
        config = self.config
        _, ph, pw = config.patch_size

        def grid(indices: Sequence[int], size: Sequence[int]) -> Float[Array, "T H W 2 K2"]:
            return rope_grid(indices, size[0] // ph, size[1] // pw, config.rope_dim, config.rope_theta)

        if history is None:
            return flatten_grid(grid(tuple(range(frames)), current))
        long, mid, short, now = history.frame_indices
        if frames != len(now):
            raise ValueError(f"the chunk has {frames} latent frames, the history is laid out for {len(now)}")
        grids = (
            pool_grid(grid(long, full), 4),
            pool_grid(grid(mid, full), 2),
            grid(short, full),
            grid(now, current),
        )
        return jnp.concatenate([flatten_grid(g) for g in grids], axis=0)

    def denoise(
        self,
        latents: Float[Array, "B T H W C"],
        timestep: Float[Array, " B"] | Int[Array, " B"],
        *,
        text: TextContext,
        context: Context | None,
        rope: RopeTable,
    ) -> Float[Array, "B T H W C2"]:
        """One network call: the velocity of ``latents`` at ``timestep`` (0..1000), in the compute dtype."""
        config = self.config
        patches = self.patch_embedding(latents.astype(self.dtype))
        x = _flatten(patches)
        embedding, rows = self.condition_embedder.time(timestep.astype(jnp.float32))
        num_history = 0
        history_rows = rows
        if context is not None:
            num_history = context.tokens.shape[1]
            x = jnp.concatenate([context.tokens, x], axis=1)
            if config.zero_history_timestep:
                history_rows = context.rows

        graph, layers = nnx.split(self.blocks)

        def run(x: Array, layer: tuple[nnx.State, TextContext]) -> tuple[Array, None]:
            state, text = layer
            block = nnx.merge(graph, state)
            x = block(
                x,
                text_k=text.k,
                text_v=text.v,
                history_rows=history_rows,
                current_rows=rows,
                rope=rope,
                num_history=num_history,
            )
            return x, None

        x, _ = jax.lax.scan(run, x, (layers, text))

        x = x[:, num_history:]
        shift, scale = jnp.split(self.norm_out.scale_shift_table[...] + embedding[:, None].astype(jnp.float32), 2, 1)
        x = self.proj_out((layer_norm(x, config.eps) * (1 + scale) + shift).astype(self.dtype))
        return from_patches(x.reshape(*patches.shape[:-1], -1), config.patch_size)

    def __call__(
        self,
        latents: Float[Array, "B T H W C"],
        timestep: Float[Array, " B"] | Int[Array, " B"],
        text_embeds: Float[Array, "B S E"],
        tiers: Tiers | None = None,
        history: HistoryConfig | None = None,
    ) -> Float[Array, "B T H W C2"]:
        """The whole forward pass in one call, for training and for comparison with other implementations.

        Args:
            latents: Noisy chunk, at the size of its level.
            timestep: Timestep of each sample, 0..1000.
            text_embeds: Output of the text encoder with zeroed padding.
            tiers: History at full latent size; ``None`` for a clip without context.
            history: Layout of the tiers; the published one by default.
        """
        layout = (history or HistoryConfig()) if tiers is not None else None
        full = tiers.short.shape[2:4] if tiers is not None else latents.shape[2:4]
        return self.denoise(
            latents,
            timestep,
            text=self.text_context(text_embeds),
            context=None if tiers is None else self.context(tiers),
            rope=self.rope(layout, full, latents.shape[2:4], latents.shape[1] // self.config.patch_size[0]),
        )


def _flatten(grid: Float[Array, "B T H W D"]) -> Float[Array, "B S D"]:
    return grid.reshape(grid.shape[0], -1, grid.shape[-1])
