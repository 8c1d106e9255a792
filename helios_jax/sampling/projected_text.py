"""The text of each chunk of a stream: embeddings from the timeline, projected to keys and values when they change."""

import threading

import jax
import jax.numpy as jnp

from helios_jax.models.blocks import TextContext
from helios_jax.models.network import Network
from helios_jax.models.tokenization import needed_keys
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.sampling.chunk import project_text
from helios_jax.sampling.finite import TEXT, Verdict, all_finite
from helios_jax.sampling.prompt_state import NewPrompt, PromptState
from helios_jax.sampling.timeline import TimelineState
from helios_jax.typing import AnyArray, Array, Float


class ProjectedText:
    """Text keys and values of successive chunks. ``next`` and ``go_back`` are called from one thread at a time.

    Args:
        prompts: The prompts of the stream.
        transformer: Projects their embeddings.

    Attributes:
        verdicts: Whether the embeddings of the last chunk are finite.
    """

    def __init__(self, prompts: PromptState, transformer: Network[HeliosTransformer]) -> None:
        self.verdicts: list[Verdict] = []
        self._prompts = prompts
        self._transformer = transformer
        self._timeline_lock = threading.Lock()
        self._projected: TextContext | None = None
        self._projected_from: Array | None = None

    @property
    def negative(self) -> Float[AnyArray, "B S E"] | None:
        """Embeddings of the negative prompts; ``None`` without guidance."""
        return self._prompts.negative

    @property
    def nbytes(self) -> int:
        """Bytes of the projected keys and values on the device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._projected))

    def set(self, prompt: NewPrompt, blend_chunks: int, *, live: bool) -> None:
        """Changes the prompt, beginning with the next chunk; see ``Stream.set_prompt``."""
        embeds = self._prompts.encode(prompt)
        with self._timeline_lock:
            self._prompts.timeline.set(embeds, blend_chunks, live=live)

    def next(self) -> TextContext:
        """Text keys and values of the next chunk."""
        with self._timeline_lock:
            embeds = self._prompts.timeline.next()
        projected = self._projected
        # Compared by identity: while nothing changes, the timeline returns the same array.
        if projected is None or self._projected_from is not embeds:
            negative = self._prompts.negative
            both = embeds if negative is None else jnp.concatenate([embeds, negative])
            self.verdicts = [(TEXT, all_finite(both))]
            projected = project_text(self._transformer, both, needed_keys(both))
            self._projected, self._projected_from = projected, embeds
        return projected

    def release(self) -> None:
        """Drops the keys and values; the next chunk projects its text anew. Any thread may call this."""
        self._projected = None

    def timeline(self) -> TimelineState:
        """Where the timeline is."""
        with self._timeline_lock:
            return self._prompts.timeline.state()

    def go_back(self, state: TimelineState) -> None:
        """Makes the chunk of an earlier state the next one; prompts that were set since then stay."""
        with self._timeline_lock:
            self._prompts.timeline.go_back(state)
