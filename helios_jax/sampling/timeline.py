"""The text embeddings of successive chunks, and how a new prompt is blended in.

A change of prompt that is blended over n chunks gives the j-th of them the embeddings

    (1 - w_j) old + w_j new,   w = linspace(0, 1, n),                                              (1)

elementwise on the zero-padded embeddings, as the research code of Helios does (arXiv 2603.04379): the first
chunk still shows the old prompt, the last one the new. With n = 0 or 1 the new prompt takes effect at once.
A change that someone waits for can leave out w_0 = 0, a chunk that still shows the old prompt.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.sampling.brief import brief_fields
from helios_jax.typing import Array, Float


def blend_weights(blend_chunks: int, *, live: bool = False) -> tuple[float, ...]:
    """Weights of the new prompt in equation (1), for the chunks of a blend; empty without a blend.

    Args:
        blend_chunks: n of the equation.
        live: Leave out the leading 0: with n = 3 the weights are (0.5, 1) instead of (0, 0.5, 1).

    Raises:
        ValueError: ``blend_chunks`` is negative.
    """
    if blend_chunks < 0:
        raise ValueError(f"blend_chunks={blend_chunks} must not be negative; 0 switches at once")
    weights = tuple(np.linspace(0, 1, blend_chunks).tolist()) if blend_chunks > 1 else ()
    return weights[1:] if live else weights


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TimelineState:
    """Where an ``EmbeddingTimeline`` is: all that the embeddings of the chunks to come depend on.

    Embeddings are arrays [B, S, E] of JAX or, in host memory, of NumPy. Where nothing changes, all three are one
    object.

    Attributes:
        chunk: The next chunk.
        old: Embeddings that the last change started from.
        new: Embeddings that it leads to.
        shown: Embeddings of the chunk before.
        weights: Weights of ``new`` in the chunks that are left of a blend.
        changes: Future changes: the chunk that each begins with, its embeddings, and the weights of its blend.
    """

    chunk: int
    old: Any
    new: Any
    shown: Any
    weights: tuple[float, ...]
    changes: Mapping[int, tuple[Any, tuple[float, ...]]]

    __repr__ = brief_fields

    @property
    def arrays(self) -> list[Any]:
        """Every array once."""
        found = [self.old, self.new, self.shown, *(embeds for _, (embeds, _) in sorted(self.changes.items()))]
        return list({id(array): array for array in found}.values())

    def map(self, function: Callable[[list[Any]], list[Any]]) -> "TimelineState":
        """The same with ``function`` of ``arrays`` in their place; fields that are one object stay one object."""
        given = self.arrays
        mapped = dict(zip(map(id, given), function(given), strict=True))
        return TimelineState(
            chunk=self.chunk,
            old=mapped[id(self.old)],
            new=mapped[id(self.new)],
            shown=mapped[id(self.shown)],
            weights=self.weights,
            changes={at: (mapped[id(embeds)], weights) for at, (embeds, weights) in self.changes.items()},
        )


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

    @classmethod
    def resumed(cls, state: TimelineState) -> "EmbeddingTimeline":
        """The timeline that continues from a state, whose arrays are those of JAX."""
        timeline = cls(state.new)
        timeline.go_back(state)
        return timeline

    def set(
        self, embeds: Float[Array, "B S E"], blend_chunks: int = 0, *, at: int | None = None, live: bool = False
    ) -> None:
        """Changes to ``embeds``, beginning with chunk ``at`` (None: the next one).

        A blend in progress is stopped: the new one starts from the embeddings of the chunk before. ``live`` leaves out
        the first chunk of a blend, see ``blend_weights``.

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
        self._changes[at] = embeds, blend_weights(blend_chunks, live=live)

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

    def state(self) -> TimelineState:
        """Where the timeline is; holds the same arrays and copies none."""
        return TimelineState(
            chunk=self._chunk,
            old=self._old,
            new=self._new,
            shown=self._shown,
            weights=tuple(self._weights),
            changes=dict(self._changes),
        )

    def go_back(self, state: TimelineState) -> None:
        """Returns to an earlier state of this timeline. Changes that were set since then stay."""
        self._old, self._new, self._shown = state.old, state.new, state.shown
        self._weights = list(state.weights)
        self._changes = dict(state.changes) | self._changes
        self._chunk = state.chunk
