"""Prompts that change during a video, written in advance: which prompt, or blend of two, each chunk has.

Texts that are set while a video runs, and the embeddings of both, are in ``sampling/timeline.py``.
"""

import dataclasses

import numpy as np

from helios_jax.sampling.timeline import EmbeddingTimeline, blend_weights
from helios_jax.typing import Array, Float, Sequence
from helios_jax.user_input import whole_number

NEGATIVE_PROMPT = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
"""The negative prompt that Wan2.1 and Helios publish for use with guidance."""

MAX_BLEND_CHUNKS = 1000
"""Longest blend of a new prompt: 23 minutes of video."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSchedule:
    """Several prompts for one video, each for a number of chunks; the last prompt stays after its chunks.

    Attributes:
        prompts: The texts, in order.
        chunks_per_prompt: Chunks of every prompt, or one number per prompt.
        blend_chunks: Chunks at the start of every later prompt that are blended from the previous prompt, by (1) of
            ``sampling/timeline.py``.

    Raises:
        ValueError: A value has the wrong type, there are no prompts, an interval is not positive, there are not as many
            intervals as prompts, or a blend does not fit into its interval.
    """

    prompts: Sequence[str]
    chunks_per_prompt: int | Sequence[int] = 7
    blend_chunks: int = 3

    def __post_init__(self) -> None:
        texts, chunks = self.prompts, self.chunks_per_prompt
        if not isinstance(texts, Sequence) or isinstance(texts, str) or not texts:
            raise ValueError(f"prompts={texts!r} must be a sequence of at least one text")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"prompts={texts!r:.200} must hold texts only")
        if isinstance(chunks, Sequence | np.ndarray) and not isinstance(chunks, str) and np.ndim(chunks) == 1:
            chunks = tuple(whole_number(count, "chunks_per_prompt") for count in chunks)
        else:
            chunks = whole_number(chunks, "chunks_per_prompt")
        object.__setattr__(self, "prompts", tuple(texts))
        object.__setattr__(self, "chunks_per_prompt", chunks)
        object.__setattr__(
            self, "blend_chunks", whole_number(self.blend_chunks, "blend_chunks", at_most=MAX_BLEND_CHUNKS)
        )
        if len(self.intervals) != len(self.prompts):
            raise ValueError(
                f"chunks_per_prompt={self.chunks_per_prompt} has {len(self.intervals)} intervals for "
                f"{len(self.prompts)} prompts; give one per prompt, or one number for all"
            )
        if min(self.intervals) < 1:
            raise ValueError(f"chunks_per_prompt={self.chunks_per_prompt}: every prompt needs at least one chunk")
        shortest = min(self.intervals[1:], default=self.blend_chunks)
        if not 0 <= self.blend_chunks <= shortest:
            raise ValueError(
                f"blend_chunks={self.blend_chunks} must be between 0 and {shortest}, "
                "the shortest interval after the first; shorten the blend or lengthen the interval"
            )

    @property
    def intervals(self) -> tuple[int, ...]:
        """Chunks of each prompt."""
        if isinstance(self.chunks_per_prompt, int):
            return (self.chunks_per_prompt,) * len(self.prompts)
        return tuple(self.chunks_per_prompt)

    @property
    def starts(self) -> tuple[int, ...]:
        """First chunk of each prompt."""
        return tuple(sum(self.intervals[:index]) for index in range(len(self.prompts)))

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole schedule."""
        return sum(self.intervals)

    def at(self, chunk: int) -> tuple[tuple[int, float], ...]:
        """The prompts of ``chunk`` as (index, weight), two of them in a blend; the weights sum to one."""
        if chunk < 0:
            raise ValueError(f"chunk={chunk} must not be negative")
        index = max(index for index, start in enumerate(self.starts) if start <= chunk)
        weights = blend_weights(self.blend_chunks) if index else ()
        place = chunk - self.starts[index]
        weight = weights[place] if place < len(weights) else 1.0
        return tuple((i, w) for i, w in ((index - 1, 1.0 - weight), (index, weight)) if w > 0)

    def timeline(self, embeds: Sequence[Float[Array, "B S E"]]) -> EmbeddingTimeline:
        """The embeddings of successive chunks, from the embeddings of each prompt.

        Raises:
            ValueError: ``embeds`` does not have one entry per prompt, or their shapes differ.
        """
        if len(embeds) != len(self.prompts):
            raise ValueError(f"got {len(embeds)} embeddings for {len(self.prompts)} prompts; give one for each")
        timeline = EmbeddingTimeline(embeds[0])
        for start, entry in list(zip(self.starts, embeds, strict=True))[1:]:
            timeline.set(entry, self.blend_chunks, at=start)
        return timeline
