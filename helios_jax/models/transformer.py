"""The Helios DiT: a Wan2.1 transformer over one sequence of history and current tokens.

The blocks are in ``blocks``. A forward pass is split where its inputs change, so that nothing is computed twice:

    text_context   once per prompt    keys and values of the text for all blocks
    context        once per chunk     history tokens and the history's modulation
    rope           once per size      rotary tables of all tokens of a level
    denoise        once per step      everything else: ``embed``, ``run_blocks`` and ``velocity``

Source: arXiv 2603.04379; numerics as diffusers 0.42.1 ``HeliosTransformer3DModel``.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.config import HistoryConfig, TransformerConfig
from helios_jax.context import Tiers
from helios_jax.models.blocks import Block, BlockLayer, Conditions, Residual, TextContext
from helios_jax.models.embedders import ConditionEmbedder
from helios_jax.models.layers import PatchEmbed, from_patches, linear, stack_layers
from helios_jax.models.network import ConfiguredModule
from helios_jax.models.rope import FrameIndices, RopeTable, flatten_grid, frame_indices, pool_grid, rope_grid
from helios_jax.parallel.execution import SAMPLING, Execution
from helios_jax.typing import Array, DType, Float, Int
from pallas_kernels.adaln import residual_norm

_TOKEN_MULTIPLE = 8
"""The token stream is padded to a multiple of this inside the network."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """History of one chunk, ready to be joined with current tokens.

    Attributes:
        tokens: Patch embeddings of the long, mid and short tiers, in this order.
        modulation: The six modulation vectors of timestep 0; they do not depend on the sample.
    """

    tokens: Float[Array, "B S D"]
    modulation: Float[Array, "1 6 D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """The input of the first block: long | mid | short | current | padding.

    Attributes:
        x: The token stream.
        embedding: Time embedding of each sample.
        modulation: Six modulation vectors for history and six for current tokens, or one set for both.
        rope: Rotary table of all tokens.
        num_history: History tokens.
        grid: Frames, rows and columns of current tokens.
    """

    x: Float[Array, "B S D"]
    embedding: Float[Array, "B D"]
    modulation: Float[Array, "B R 6 D"]
    rope: RopeTable
    num_history: int = dataclasses.field(metadata={"static": True})
    grid: tuple[int, int, int] = dataclasses.field(metadata={"static": True})

    @property
    def num_current(self) -> int:
        """Current tokens."""
        return math.prod(self.grid)


class OutputTable(nnx.Module):
    """Shift and scale of the output norm."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.scale_shift_table = nnx.Param(jax.random.normal(rngs.params(), (2, dim)) / math.sqrt(dim))


class HeliosTransformer(ConfiguredModule):
    """Predicts the velocity of a noisy chunk from its context, the text and the timestep.

    Args:
        config: Sizes and switches.
        dtype: Compute dtype. The time MLP, the modulation tables, ``norm2`` and ``history_key_scale`` stay
            fp32 for any ``dtype``.
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
            num_keys: Tokens to project, by default all. The last of them also represents all tokens after it, which
                must equal it.
        """
        num_keys = embeds.shape[1] if num_keys is None else num_keys
        text = self.condition_embedder.text(embeds[:, :num_keys])
        graph, state = nnx.split(self.blocks.attn2)

        # Only the stacks of cross-attention enter the scan; the other weights of the blocks are not read.
        def project(_: None, layer: nnx.State) -> tuple[None, TextContext]:
            return None, nnx.merge(graph, layer).project(text)

        context = jax.lax.scan(project, None, state)[1]
        return dataclasses.replace(context, last_key_count=embeds.shape[1] - num_keys + 1)

    def context(self, tiers: Tiers) -> Context:
        """Patch embeddings of the history and its modulation; constant over the steps of a chunk."""
        patchers = ((self.patch_long, tiers.long), (self.patch_mid, tiers.mid), (self.patch_short, tiers.short))
        streams = [patch(frames.astype(self.dtype)) for patch, frames in patchers if frames.shape[1]]
        tokens = jnp.concatenate([_flatten(stream) for stream in streams], axis=1)
        # History is clean, at timestep 0 for every sample and step: one set of vectors serves the whole batch.
        _, modulation = self.condition_embedder.time(jnp.zeros((1,), jnp.float32))
        return Context(tokens=tokens, modulation=modulation)

    def rope(
        self,
        history_config: HistoryConfig | None,
        full: Sequence[int],
        current: Sequence[int],
        frames: int,
        chunk: int | Int[Array, "*numbers"] = 0,
    ) -> RopeTable:
        """Rotary table of all tokens.

        Args:
            history_config: Tiers and their frame indices; ``None`` for a clip without context.
            full: Latent (height, width) of the history, always the full size.
            current: Latent (height, width) of the current tokens: the level's size. Its grid has unit
                spacing at every level.
            frames: Latent frames of the current chunk.
            chunk: Number of the chunk in its video, or one for each sample, which then has a table of its own. Only
                absolute positions depend on it.

        Raises:
            ValueError: The history is laid out for chunks of another length.
        """
        config = self.config
        _, ph, pw = config.patch_size

        if jnp.ndim(chunk):
            if history_config is not None and history_config.positions == "absolute":
                return jax.vmap(lambda one: self.rope(history_config, full, current, frames, one))(chunk)
            chunk = 0

        def grid(indices: FrameIndices, size: Sequence[int]) -> Float[Array, "T H W 2 K2"]:
            return rope_grid(indices, size[0] // ph, size[1] // pw, config.rope_dim, config.rope_theta)

        if history_config is None:
            return flatten_grid(grid(tuple(range(frames)), current))
        long, mid, short, now = frame_indices(history_config, chunk)
        if frames != len(now):
            raise ValueError(f"the chunk has {frames} latent frames, the history is laid out for {len(now)}")
        grids = [pool_grid(grid(tier, full), cell) for tier, cell in ((long, 4), (mid, 2)) if len(tier)]
        grids += [grid(short, full), grid(now, current)]
        return jnp.concatenate([flatten_grid(g) for g in grids], axis=0)

    @overload
    def denoise(
        self,
        latents: Float[Array, "B T H W C"],
        timestep: Float[Array, " B"] | Int[Array, " B"],
        *,
        text: TextContext | Float[Array, "B S2 D"],
        context: Context | None,
        rope: RopeTable,
        execution: Execution = ...,
        taps: tuple[()] = ...,
    ) -> Float[Array, "B T H W C2"]: ...

    @overload
    def denoise(
        self,
        latents: Float[Array, "B T H W C"],
        timestep: Float[Array, " B"] | Int[Array, " B"],
        *,
        text: TextContext | Float[Array, "B S2 D"],
        context: Context | None,
        rope: RopeTable,
        execution: Execution = ...,
        taps: tuple[int, ...],
    ) -> tuple[Float[Array, "B T H W C2"], Float[Array, "taps B S D"]]: ...

    def denoise(
        self,
        latents: Float[Array, "B T H W C"],
        timestep: Float[Array, " B"] | Int[Array, " B"],
        *,
        text: TextContext | Float[Array, "B S2 D"],
        context: Context | None,
        rope: RopeTable,
        execution: Execution = SAMPLING,
        taps: tuple[int, ...] = (),
    ) -> Any:  # an array or two, as the overloads say
        """One network call: the velocity of ``latents`` at ``timestep`` (0..1000), in the compute dtype.

        Args:
            latents: Noisy chunk, at the size of its level.
            timestep: Timestep of each sample.
            text: Keys and values from ``text_context`` when many calls share a prompt, as in sampling. In training,
                embedded text from ``condition_embedder.text``, which each block projects: the keys and values of all
                blocks and their gradients would take 1.3 GB per sample.
            context: From ``context``; ``None`` for a clip without history.
            rope: From ``rope``.
            execution: How the blocks are run; by default as in sampling.
            taps: Numbers of blocks, from 0. With taps the result is a pair: the velocity, and the residual streams
                [taps, B, S, D] of the current tokens after these blocks, in the compute dtype.

        Raises:
            ValueError: ``taps`` are not increasing numbers of blocks.
        """
        tokens = self.embed(latents, timestep, context=context, rope=rope)
        residual, streams = self.run_tapped_blocks(tokens, text, taps, execution)
        velocity = self.velocity(residual, tokens)
        return velocity if streams is None else (velocity, streams)

    def embed(
        self,
        latents: Float[Array, "B T H W C"],
        timestep: Float[Array, " B"] | Int[Array, " B"],
        *,
        context: Context | None,
        rope: RopeTable,
    ) -> Tokens:
        """The first part of ``denoise``: what the blocks read, apart from the text."""
        patches = self.patch_embedding(latents.astype(self.dtype))
        _, frames, rows, columns, _ = patches.shape
        x = _flatten(patches)
        embedding, modulation = self.condition_embedder.time(timestep.astype(jnp.float32))
        modulation = modulation[:, None]
        num_history = 0
        if context is not None:
            # History comes first, so kernels and slices need only num_history instead of an index per token.
            num_history = context.tokens.shape[1]
            x = jnp.concatenate([context.tokens, x], axis=1)
            # Without zero_history_timestep, history is modulated like current tokens, by the same set of vectors.
            if self.config.zero_history_timestep:
                of_history = jnp.broadcast_to(context.modulation[:, None], modulation.shape)
                modulation = jnp.concatenate([of_history, modulation], axis=1)

        # The kernels need a multiple of 8 tokens. Padding stays finite, is not attended to, and is dropped at the end.
        padding = -x.shape[1] % _TOKEN_MULTIPLE
        return Tokens(
            x=jnp.pad(x, ((0, 0), (0, padding), (0, 0))),
            embedding=embedding,
            modulation=modulation,
            rope=jnp.pad(rope, [*[(0, 0)] * (rope.ndim - 3), (0, padding), (0, 0), (0, 0)]),
            num_history=num_history,
            grid=(frames, rows, columns),
        )

    def run_blocks(
        self, tokens: Tokens, text: TextContext | Float[Array, "B S D"], execution: Execution = SAMPLING
    ) -> Residual:
        """The second part of ``denoise``: the residual stream of current tokens and padding after all blocks."""
        return self.run_tapped_blocks(tokens, text, (), execution)[0]

    def run_tapped_blocks(
        self,
        tokens: Tokens,
        text: TextContext | Float[Array, "B S D"],
        taps: tuple[int, ...],
        execution: Execution = SAMPLING,
    ) -> tuple[Residual, Float[Array, "taps B S2 D"] | None]:
        """Like ``run_blocks``; also returns the streams of current tokens after the blocks ``taps``, if there are any.

        Raises:
            ValueError: ``taps`` are not increasing numbers of blocks.
        """
        graph, layers = nnx.split(self.blocks)
        layer = BlockLayer(
            graph=graph, num_history=tokens.num_history, num_tokens=tokens.num_history + tokens.num_current
        )
        # Keys and values differ per block and are stacked like the weights; embedded text is shared by all blocks.
        own, shared = (text, None) if isinstance(text, TextContext) else (None, text)
        constants = Conditions(modulation=tokens.modulation, rope=tokens.rope, text=shared)
        residual, streams = execution.layers.run(layer, tokens.x, (layers, own), constants, taps)
        return residual, None if streams is None else streams[:, :, : tokens.num_current]

    def velocity(self, residual: Residual, tokens: Tokens) -> Float[Array, "B T H W C"]:
        """The last part of ``denoise``: output norm and projection of current tokens, as latents."""
        modulation = self.norm_out.scale_shift_table[...] + tokens.embedding[:, None, None].astype(jnp.float32)
        shift, scale = jnp.unstack(modulation, axis=2)
        # The norm also performs the addition that the last block deferred, in the same pass over memory.
        _, y = residual_norm(
            residual.x[:, : tokens.num_current],
            None if residual.update is None else residual.update[:, : tokens.num_current],
            gate=residual.gate,
            scale=1 + scale,
            shift=shift,
            eps=self.config.eps,
        )
        patches = self.proj_out(y).reshape(y.shape[0], *tokens.grid, -1)
        return from_patches(patches, self.config.patch_size)

    def __call__(
        self,
        latents: Float[Array, "B T H W C"],
        timestep: Float[Array, " B"] | Int[Array, " B"],
        text_embeds: Float[Array, "B S E"],
        tiers: Tiers | None = None,
        history_config: HistoryConfig | None = None,
        execution: Execution = SAMPLING,
        chunk: int | Int[Array, "*numbers"] = 0,
    ) -> Float[Array, "B T H W C2"]:
        """The whole forward pass in one call, for training and for comparison with other implementations.

        The text is projected by each block, since nothing here is reused in another call.

        Args:
            latents: Noisy chunk, at the size of its level.
            timestep: Timestep of each sample, 0..1000.
            text_embeds: Output of the text encoder with zeroed padding.
            tiers: History at full latent size; ``None`` for a clip without context.
            history_config: Layout of the tiers; the published one by default.
            execution: How the blocks are run.
            chunk: Number of the chunk, as for ``rope``.
        """
        layout = (history_config or HistoryConfig()) if tiers is not None else None
        full = tiers.short.shape[2:4] if tiers is not None else latents.shape[2:4]
        return self.denoise(
            latents,
            timestep,
            text=self.condition_embedder.text(text_embeds),
            context=None if tiers is None else self.context(tiers),
            rope=self.rope(layout, full, latents.shape[2:4], latents.shape[1] // self.config.patch_size[0], chunk),
            execution=execution,
        )


def _flatten(grid: Float[Array, "B T H W D"]) -> Float[Array, "B S D"]:
    return grid.reshape(grid.shape[0], -1, grid.shape[-1])
