"""Batches: produced by loaders, consumed by methods."""

import dataclasses

import jax
from jax.sharding import PartitionSpec

from helios_jax.typing import AnyArray, Float, Int, UInt8

SAMPLE_AXES = ("data", "fsdp")
"""Axes of the mesh that split the samples of a batch."""

CLIPS = {"partition": PartitionSpec(SAMPLE_AXES, None, "context")}
"""Metadata of a field that holds clips [B, T, H, W, C]: the mesh splits their rows as well."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Prompts of a batch: embeddings from a frozen encoder, or tokens for an encoder in training.

    Attributes:
        embeds: Output of the text encoder, zeros after the last token.
        tokens: Token ids, the tokenizer's padding after the last one.
        lengths: Tokens of each prompt, including the end-of-sequence token; given with ``tokens``.
        captions: The captions themselves, for a reward: bytes of UTF-8, zeros after the last one.
    """

    embeds: Float[AnyArray, "B S E"] | None = None
    tokens: Int[AnyArray, "B S"] | None = None
    lengths: Int[AnyArray, " B"] | None = None
    captions: UInt8[AnyArray, "B bytes"] | None = None

    @property
    def length(self) -> int:
        """Tokens per prompt, including padding.

        Raises:
            ValueError: There are neither embeddings nor tokens.
        """
        given = self.embeds if self.tokens is None else self.tokens
        if given is None:
            raise ValueError("the batch has no text: give embeds, or tokens together with their lengths")
        return given.shape[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """Windows of videos in model space (normalised latents).

    Attributes:
        target: The chunk to be generated.
        history: The frames before it, oldest first, zeros before the start of the video.
        anchor: The first frame of the video; zeros where the target is the first chunk.
        text: The prompts.
        chunk: Number of the target in its video, for absolute positions.
    """

    target: Float[AnyArray, "B T H W C"] = dataclasses.field(metadata=CLIPS)
    history: Float[AnyArray, "B T2 H W C"] = dataclasses.field(metadata=CLIPS)
    anchor: Float[AnyArray, "B 1 H W C"] = dataclasses.field(metadata=CLIPS)
    text: PromptBatch
    chunk: Int[AnyArray, " B"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentPair:
    """Two windows of every video, for distillation.

    Attributes:
        generator: The context in which the generator is trained.
        critic: The context in which the critic is trained, and its real chunk.
    """

    generator: LatentBatch
    critic: LatentBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OdePoints:
    """Points of one chunk's trajectory on one level, for every sample.

    Attributes:
        latents: Samples at the student's steps.
        end: The end point of the level.
        timesteps: Timesteps of the steps.
        sigmas: Their noise levels.
    """

    latents: Float[AnyArray, "B points T H W C"]
    end: Float[AnyArray, "B T H W C"]
    timesteps: Float[AnyArray, "B points"]
    sigmas: Float[AnyArray, "B points"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OdeBatch:
    """Chunks of recorded videos, each with its teacher's trajectory and the chunks before it.

    Attributes:
        levels: The trajectory, lowest level first.
        history: The frames before the chunk, oldest first, zeros before the start of the video.
        anchor: The first frame of the video; zeros where the chunk is the first.
        text: The prompts.
    """

    levels: tuple[OdePoints, ...]
    history: Float[AnyArray, "B T2 H W C"] = dataclasses.field(metadata=CLIPS)
    anchor: Float[AnyArray, "B 1 H W C"] = dataclasses.field(metadata=CLIPS)
    text: PromptBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoBatch:
    """Clips as pixels.

    Attributes:
        frames: RGB.
    """

    frames: UInt8[AnyArray, "B F H W 3"] = dataclasses.field(metadata=CLIPS)
