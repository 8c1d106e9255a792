"""The text of each chunk of a stream: embeddings from the timeline, projected to keys and values when they change."""

import threading
from collections.abc import Sequence

import jax.numpy as jnp

from helios_jax.models.blocks import TextContext
from helios_jax.models.network import Network
from helios_jax.models.tokenization import needed_keys
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.sampling.chunk import project_text
from helios_jax.sampling.finite import TEXT, Verdict, all_finite
from helios_jax.sampling.prompt_state import PromptState
from helios_jax.typing import AnyArray, Array


class ProjectedText:
    """Text keys and values of successive chunks. ``set`` may be called from any thread, ``of_chunk`` from one.

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
        self._next_chunk = 0  # the first chunk whose embeddings have not been taken from the timeline
        self._embeds: Array | None = None
        self._projected: TextContext | None = None
        self._projected_from: Array | None = None

    def set(self, prompt: str | Sequence[str] | AnyArray, blend_chunks: int) -> None:
        """Changes the prompt, beginning with the next chunk; see ``Stream.set_prompt``."""
        embeds = self._prompts.encode(prompt)
        with self._timeline_lock:
            self._prompts.timeline.set(embeds, blend_chunks)

    def of_chunk(self, index: int) -> TextContext:
        """Text keys and values of a chunk; the same index may be asked for again before the next one."""
        # The timeline advances once per chunk. When a chunk was interrupted and is sampled again, its embeddings have
        # been taken already, and taking the next ones would skip a chunk of a schedule or of a blend.
        if self._next_chunk <= index:
            with self._timeline_lock:
                self._embeds = self._prompts.timeline.next()
            self._next_chunk = index + 1
        # Compared by identity: while nothing changes, the timeline returns the same array.
        if self._projected is None or self._projected_from is not self._embeds:
            assert self._embeds is not None, "chunks are numbered from 0"
            negative = self._prompts.negative
            both = self._embeds if negative is None else jnp.concatenate([self._embeds, negative])
            self.verdicts = [(TEXT, all_finite(both))]
            self._projected = project_text(self._transformer, both, needed_keys(both))
            self._projected_from = self._embeds
        return self._projected
