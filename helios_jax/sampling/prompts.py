"""Prompts that change during a video: schedules written in advance and texts set live.

A change of prompt that is blended over n chunks gives the j-th of them the embeddings

    (1 - w_j) old + w_j new,   w = linspace(0, 1, n),                                              (1)

elementwise on the zero-padded embeddings, as the research code of Helios does (arXiv 2603.04379): the first
chunk still shows the old prompt, the last one the new. With n = 0 or 1 the new prompt takes effect at once.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

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


def blend_weights(blend_chunks: int) -> tuple[float, ...]:
    """Weights of the new prompt in equation (1), for the chunks of a blend; empty without a blend.

    Raises:
        ValueError: ``blend_chunks`` is negative.
    """
    if blend_chunks < 0:
        raise ValueError(f"blend_chunks={blend_chunks} must not be negative; 0 switches at once")
    return tuple(np.linspace(0, 1, blend_chunks).tolist()) if blend_chunks > 1 else ()


@jax.jit
def _interpolate(
    old: Float[Array, "B S E"], new: Float[Array, "B S E"], weight: Float[Array, ""]
) -> Float[Array, "B S E"]:
    old32, new32 = old.astype(jnp.float32), new.astype(jnp.float32)
    return ((1 - weight) * old32 + weight * new32).astype(new.dtype)


class EmbeddingTimeline:
    """The text embeddings of successive chunks, [B, S, E] each.

    While nothing changes, ``next`` returns the same array object, so callers can cache what they derive from it by
    identity.

    Args:
        embeds: Embeddings of the first chunk.
    """

    def __init__(self, embeds: Float[Array, "B S E"]) -> None:
        self._old = self._new = self._shown = embeds
        self._weights: list[float] = []
        self._changes: dict[int, tuple[Array, tuple[float, ...]]] = {}
        self._chunk = 0

    def set(self, embeds: Float[Array, "B S E"], blend_chunks: int = 0, *, at: int | None = None) -> None:
        """Changes to ``embeds``, beginning with chunk ``at`` (None: the next one).

        A blend in progress is stopped: the new one starts from the embeddings of the chunk before.

        Raises:
            ValueError: Another shape or dtype than before, a negative ``blend_chunks``, or ``at`` already passed.
        """
        at = self._chunk if at is None else at
        if at < self._chunk:
            raise ValueError(f"cannot change the prompt at chunk {at}: the next chunk is {self._chunk}")
        if (embeds.shape, embeds.dtype) != (self._new.shape, self._new.dtype):
            raise ValueError(
                f"the new embeddings are {embeds.dtype}{list(embeds.shape)}, those in use "
                f"{self._new.dtype}{list(self._new.shape)}; encode both with the same batch, max_tokens and encoder"
            )
        self._changes[at] = embeds, blend_weights(blend_chunks)

    def next(self) -> Float[Array, "B S E"]:
        """Embeddings of the next chunk."""
        if self._chunk in self._changes:
            self._old = self._shown
            self._new, weights = self._changes.pop(self._chunk)
            self._weights = list(weights)
        weight = self._weights.pop(0) if self._weights else 1.0
        if weight in (0.0, 1.0):
            self._shown = self._new if weight else self._old
        else:
            self._shown = _interpolate(self._old, self._new, jnp.float32(weight))
        self._chunk += 1
        return self._shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSchedule:
    """Several prompts for one video, each for a number of chunks; the last prompt stays after its chunks.

    Attributes:
        prompts: The texts, in order.
        chunks_per_prompt: Chunks of every prompt, or one number per prompt.
        blend_chunks: Chunks at the start of every later prompt that are blended from the previous prompt by (1).

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
