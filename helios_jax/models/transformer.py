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
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.context import Tiers
from helios_jax.models.embedders import ConditionEmbedder
from helios_jax.models.layers import (
    LayerNormAffine,
    PatchEmbed,
    Scale,
    from_patches,
    linear,
    rms_norm,
    stack_layers,
)
from helios_jax.models.network import ConfiguredModule
from helios_jax.models.rope import RopeTable, flatten_grid, pool_grid, rope_grid
from helios_jax.parallel.memory import ATTENTION, Remat, scan_layers
from helios_jax.typing import Array, DType, Float, Int
from pallas_kernels.adaln import residual_norm, residual_sum
from pallas_kernels.attention import attention, attention_packed
from pallas_kernels.qk_norm_rope import qk_norm_rope

_TOKEN_MULTIPLE = 8
"""The token stream is padded to a multiple of this inside the network."""

_MAX_HISTORY_SCALE = 10.0
"""Upper limit of the learned amplification of history keys."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextContext:
    """Projected text, ready to be attended to: of every block, or of one inside the scan over blocks.

    Attributes:
        k: Keys.
        v: Values.
        last_key_count: How many tokens the last key and value stand for: padding has the same ones everywhere.
    """

    k: Float[Array, "*L B S N K"]
    v: Float[Array, "*L B S N K"]
    last_key_count: int = dataclasses.field(default=1, metadata={"static": True})


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


class SelfAttention(nnx.Module):
    """Attention of all tokens to all tokens, equation (1). Queries, keys and values are one projection."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        dim, types = config.dim, {"dtype": dtype, "param_dtype": param_dtype}
        self.to_qkv = linear(dim, 3 * dim, **types, rngs=rngs)
        self.to_out = linear(dim, dim, **types, rngs=rngs)
        self.norm_q = Scale(dim, param_dtype=param_dtype)
        self.norm_k = Scale(dim, param_dtype=param_dtype)
        if config.is_amplify_history:
            heads = config.num_heads if config.history_scale_mode == "per_head" else 1
            self.history_key_scale = nnx.Param(jnp.ones((heads,), jnp.float32))
        self.config = config

    def __call__(
        self, x: Float[Array, "B S D"], rope: RopeTable, num_history: int, num_tokens: int, first_query: int = 0
    ) -> Float[Array, "B S2 D"]:
        """Attention of the tokens from ``first_query`` on to all of the first ``num_tokens``."""
        config, dim = self.config, x.shape[-1]
        qkv = self.to_qkv(x)
        q, k = qk_norm_rope(
            qkv, qkv, self.norm_q.scale[...], self.norm_k.scale[...], rope, q_start=0, k_start=dim, eps=config.eps
        )
        if config.is_amplify_history:
            k = self._amplify(k, num_history)
        heads = qkv.reshape(*x.shape[:2], 3 * config.num_heads, config.head_dim)
        out = attention_packed(
            q[:, first_query:],
            k,
            heads,
            num_heads=config.num_heads,
            first_heads=(0, 0, 2 * config.num_heads),
            kv_length=num_tokens,
            residual_name=ATTENTION,
        )
        return self.to_out(out.reshape(*out.shape[:2], dim))

    def _amplify(self, k: Float[Array, "B S N K"], num_history: int) -> Float[Array, "B S N K"]:
        """Scales the history's keys by the learned factor in (1, 10)."""
        factor = 1.0 + jax.nn.sigmoid(self.history_key_scale[...]) * (_MAX_HISTORY_SCALE - 1.0)
        history = jnp.arange(k.shape[1])[:, None, None] < num_history
        return (k.astype(jnp.float32) * jnp.where(history, factor[:, None], 1.0)).astype(k.dtype)


class CrossAttention(nnx.Module):
    """Attention to the text, equation (2). Its keys and values are made once per prompt."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        dim, types = config.dim, {"dtype": dtype, "param_dtype": param_dtype}
        self.to_q, self.to_k, self.to_v, self.to_out = (linear(dim, dim, **types, rngs=rngs) for _ in range(4))
        self.norm_q = Scale(dim, param_dtype=param_dtype)
        self.norm_k = Scale(dim, param_dtype=param_dtype)
        self.num_heads = config.num_heads
        self.eps = config.eps

    def project(self, text: Float[Array, "B S D"]) -> TextContext:
        """Keys and values."""
        k = rms_norm(self.to_k(text), self.norm_k.scale[...], self.eps)
        return TextContext(k=self._heads(k), v=self._heads(self.to_v(text)))

    def __call__(self, x: Float[Array, "B S D"], text: TextContext | Float[Array, "B S2 D"]) -> Float[Array, "B S D"]:
        if not isinstance(text, TextContext):
            text = self.project(text)
        q = rms_norm(self.to_q(x), self.norm_q.scale[...], self.eps)
        out = attention(self._heads(q), text.k, text.v, last_key_count=text.last_key_count)
        return self.to_out(out.reshape(x.shape))

    def _heads(self, x: Float[Array, "B S D"]) -> Float[Array, "B S N K"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)


class FeedForward(nnx.Module):
    """Two linear layers with a tanh-approximated GELU between."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        self.proj_in = linear(config.dim, config.ffn_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.proj_out = linear(config.ffn_dim, config.dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return self.proj_out(self.proj_in(x, activation="gelu"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual:
    """The residual stream between blocks: x + gate * update, not yet summed.

    The sum is left to the next norm, which reads the stream anyway. Where a gradient stores the stream of every block,
    it is summed: one array in place of two.

    Attributes:
        x: The stream before the last sub-layer.
        update: Output of the last sub-layer; ``None`` if it is in x already.
        gate: Its gates, fp32, a row for history and one for current tokens, or one for both.
    """

    x: Float[Array, "B S D"]
    update: Float[Array, "B S D"] | None = None
    gate: Float[Array, "B R D"] | None = None


class Block(nnx.Module):
    """One transformer block, equations (1) to (3)."""

    def __init__(self, config: TransformerConfig, *, dtype: DType, param_dtype: DType, rngs: nnx.Rngs):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attn1 = SelfAttention(config, **types)
        self.attn2 = CrossAttention(config, **types)
        self.ffn = FeedForward(config, **types)
        if config.cross_attn_norm:
            self.norm2 = LayerNormAffine(config.dim)
        self.scale_shift_table = nnx.Param(jax.random.normal(rngs.params(), (6, config.dim)) / math.sqrt(config.dim))
        self.config = config

    def __call__(
        self,
        residual: Residual,
        *,
        text: TextContext | Float[Array, "B S2 D"],
        rows: Float[Array, "B R 6 D"],
        rope: RopeTable,
        num_history: int,
        num_tokens: int,
        is_last: bool = False,
    ) -> Residual:
        """Runs the block on ``num_history`` tokens of history and those behind.

        After the last block only current tokens are read: there history serves as keys and values, and nothing else of
        it is computed or returned.
        """
        config = self.config
        norm = functools.partial(residual_norm, num_history=num_history, eps=config.eps)
        modulation = self.scale_shift_table[...] + rows.astype(jnp.float32)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = jnp.unstack(modulation, axis=2)

        x, y = norm(residual.x, residual.update, gate=residual.gate, scale=1 + scale, shift=shift)
        update = self.attn1(y, rope, num_history, num_tokens, first_query=num_history if is_last else 0)
        if is_last:
            x, num_history = x[:, num_history:], 0
            gate, ffn_shift, ffn_scale, ffn_gate = (row[:, -1:] for row in (gate, ffn_shift, ffn_scale, ffn_gate))
            norm = functools.partial(residual_norm, eps=config.eps)

        # Text is for current tokens; history passes through.
        text_for_all = not config.guidance_cross_attn
        weight, bias = self._norm2_rows()
        x, y = norm(x, update, gate=gate, scale=weight, shift=bias, norm_history=text_for_all)
        if not config.cross_attn_norm:
            y = x if text_for_all else x[:, num_history:]
        update = self.attn2(y, text)

        x, y = norm(x, update, gate=None, scale=1 + ffn_scale, shift=ffn_shift)
        return Residual(x=x, update=self.ffn(y), gate=ffn_gate)

    def _norm2_rows(self) -> tuple[Float[Array, "1 1 D"], Float[Array, "1 1 D"]]:
        """Weight and bias of the affine norm in front of cross-attention."""
        if self.config.cross_attn_norm:
            return self.norm2.scale[...][None, None], self.norm2.bias[...][None, None]
        return jnp.ones((1, 1, self.config.dim)), jnp.zeros((1, 1, self.config.dim))


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

    def text_context(self, embeds: Float[Array, "B S E"], num_keys: int | None = None) -> TextContext:
        """Keys and values of the text in every block; constant over steps, levels and chunks.

        Args:
            embeds: Output of the text encoder with zeroed padding.
            num_keys: Tokens to project, by default all. The last of them stands for all behind it as well, which must
                equal it.
        """
        num_keys = embeds.shape[1] if num_keys is None else num_keys
        text = self.condition_embedder.text(embeds[:, :num_keys])
        graph, state = nnx.split(self.blocks.attn2)

        def project(_: None, layer: nnx.State) -> tuple[None, TextContext]:
            return None, nnx.merge(graph, layer).project(text)

        context = jax.lax.scan(project, None, state)[1]
        return dataclasses.replace(context, last_key_count=embeds.shape[1] - num_keys + 1)

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
        text: TextContext | Float[Array, "B S2 D"],
        context: Context | None,
        rope: RopeTable,
        remat: Remat | None = None,
    ) -> Float[Array, "B T H W C2"]:
        """One network call: the velocity of ``latents`` at ``timestep`` (0..1000), in the compute dtype.

        Args:
            latents: Noisy chunk, at the size of its level.
            timestep: Timestep of each sample.
            text: From ``text_context``, for sampling; for training from ``condition_embedder.text``, to be projected in
                each block: the keys and values of all blocks, their gradients beside them, would take 1.3 GB a sample.
            context: From ``context``; ``None`` for a clip without history.
            rope: From ``rope``.
            remat: What a gradient computes again, see ``Remat``; ``None`` for sampling.
        """
        config = self.config
        patches = self.patch_embedding(latents.astype(self.dtype))
        x = _flatten(patches)
        num_current = x.shape[1]
        embedding, rows = self.condition_embedder.time(timestep.astype(jnp.float32))
        rows = rows[:, None]
        num_history = 0
        if context is not None:
            num_history = context.tokens.shape[1]
            x = jnp.concatenate([context.tokens, x], axis=1)
            if config.zero_history_timestep:
                rows = jnp.concatenate([jnp.broadcast_to(context.rows[:, None], rows.shape), rows], axis=1)

        # The kernels want a multiple of 8 tokens. The ones added stay finite, are not attended to, and are dropped.
        num_tokens = x.shape[1]
        padding = -num_tokens % _TOKEN_MULTIPLE
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
        rope = jnp.pad(rope, ((0, padding), (0, 0), (0, 0)))

        graph, layers = nnx.split(self.blocks)
        stacks = layers, text if isinstance(text, TextContext) else None
        constants = rows, rope, None if isinstance(text, TextContext) else text

        def run(residual: Residual, layer: Any, constants: Any, *, is_last: bool = False) -> Residual:
            (state, own_text), (rows, rope, shared_text) = layer, constants
            return nnx.merge(graph, state)(
                residual,
                text=shared_text if own_text is None else own_text,
                rows=rows,
                rope=rope,
                num_history=num_history,
                num_tokens=num_tokens,
                is_last=is_last,
            )

        def run_summed(x: Float[Array, "B S D"], layer: Any, constants: Any) -> Float[Array, "B S D"]:
            end = run(Residual(x=x), layer, constants)
            assert end.update is not None
            return residual_sum(end.x, end.update, end.gate, num_history=num_history)

        if remat is None:
            # Layers by index: the last one is apart, and a stack of all but one would be a copy of the weights.
            def run_layer(index: Int[Array, ""] | int, residual: Residual, *, is_last: bool = False) -> Residual:
                return run(residual, jax.tree.map(lambda stack: stack[index], stacks), constants, is_last=is_last)

            last = config.num_layers - 1
            start = Residual(x=x, update=jnp.zeros_like(x), gate=jnp.zeros_like(rows[:, :, 0], jnp.float32))
            end = run_layer(last, jax.lax.fori_loop(0, last, run_layer, start), is_last=True)
        else:
            x = scan_layers(run_summed, x, stacks, constants, remat)
            end = Residual(x=x[:, num_history:])

        modulation = self.norm_out.scale_shift_table[...] + embedding[:, None, None].astype(jnp.float32)
        shift, scale = jnp.unstack(modulation, axis=2)
        _, y = residual_norm(
            end.x[:, :num_current],
            None if end.update is None else end.update[:, :num_current],
            gate=end.gate,
            scale=1 + scale,
            shift=shift,
            eps=config.eps,
        )
        return from_patches(self.proj_out(y).reshape(*patches.shape[:-1], -1), config.patch_size)

    def __call__(
        self,
        latents: Float[Array, "B T H W C"],
        timestep: Float[Array, " B"] | Int[Array, " B"],
        text_embeds: Float[Array, "B S E"],
        tiers: Tiers | None = None,
        history: HistoryConfig | None = None,
        remat: Remat | None = None,
    ) -> Float[Array, "B T H W C2"]:
        """The whole forward pass in one call, for training and for comparison with other implementations.

        Args:
            latents: Noisy chunk, at the size of its level.
            timestep: Timestep of each sample, 0..1000.
            text_embeds: Output of the text encoder with zeroed padding.
            tiers: History at full latent size; ``None`` for a clip without context.
            history: Layout of the tiers; the published one by default.
            remat: As for ``denoise``.
        """
        layout = (history or HistoryConfig()) if tiers is not None else None
        full = tiers.short.shape[2:4] if tiers is not None else latents.shape[2:4]
        return self.denoise(
            latents,
            timestep,
            text=self.text_context(text_embeds) if remat is None else self.condition_embedder.text(text_embeds),
            context=None if tiers is None else self.context(tiers),
            rope=self.rope(layout, full, latents.shape[2:4], latents.shape[1] // self.config.patch_size[0]),
            remat=remat,
        )


def _flatten(grid: Float[Array, "B T H W D"]) -> Float[Array, "B S D"]:
    return grid.reshape(grid.shape[0], -1, grid.shape[-1])
