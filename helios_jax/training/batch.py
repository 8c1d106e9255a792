"""Batches: produced by loaders, consumed by methods."""

import dataclasses

import jax

from helios_jax.typing import AnyArray, Float, Int, UInt8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Prompts of a batch, as embeddings of a frozen encoder or as tokens for one that is trained.

    Attributes:
        embeds: Output of the text encoder, zeros after the last token.
        tokens: Token ids, the tokenizer's padding after the last one.
        lengths: Tokens of each prompt, the end-of-sequence token included; given with ``tokens``.
    """

    embeds: Float[AnyArray, "B S E"] | None = None
    tokens: Int[AnyArray, "B S"] | None = None
    lengths: Int[AnyArray, " B"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """Windows of videos in model space (normalised latents).

    Attributes:
        target: The chunk to be generated.
        history: The frames before it, oldest first, zeros before the start of the video.
        anchor: The first frame of the video; zeros where the target is the first chunk.
        text: The prompts.
    """

    target: Float[AnyArray, "B T H W C"]
    history: Float[AnyArray, "B T2 H W C"]
    anchor: Float[AnyArray, "B 1 H W C"]
    text: PromptBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoBatch:
    """Clips as pixels.

    Attributes:
        frames: RGB.
    """

    frames: UInt8[AnyArray, "B F H W 3"]
