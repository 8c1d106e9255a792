"""Text formats that turn the captions of records into a ``PromptBatch``: stored embeddings, or tokens."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from helios_jax.training.batch import PromptBatch
from helios_jax.typing import Int, UInt8

if TYPE_CHECKING:
    from helios_jax.models.tokenization import Tokenizer

_CAPTIONS_KEPT = 2**16
"""Captions whose tokens are kept: for small models tokenizing takes longer than the step."""


@runtime_checkable
class Captioned(Protocol):
    """A record with a text: ``LatentRecord`` or ``OdeRecord``."""

    @property
    def caption(self) -> str:
        """The text."""
        ...

    @property
    def embeds(self) -> np.ndarray:
        """[tokens, width], output of the text encoder; no rows if it is not stored."""
        ...


@runtime_checkable
class TextFormat(Protocol):
    """How captions become a ``PromptBatch``."""

    def check(self, record: Captioned) -> None:
        """Raises ValueError when the record's text cannot be used."""
        ...

    def __call__(self, records: Sequence[Captioned], draws: Sequence[float]) -> PromptBatch:
        """The text of a batch, in host memory; ``draws`` has a number in [0, 1) for each record."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedEmbeds:
    """Stored embeddings, with zero rows up to a fixed number of tokens.

    Attributes:
        tokens: Number of rows.
    """

    tokens: int = 512

    def check(self, record: Captioned) -> None:
        """Raises ValueError for a record without embeddings, or with more rows than there is room for."""
        rows = len(record.embeds)
        if rows == 0:
            raise ValueError("it has no text embeddings; prepare it with --text, or train on tokens")
        if rows > self.tokens:
            raise ValueError(f"its text has {rows} tokens, the loader pads to {self.tokens}; raise that number")

    def __call__(self, records: Sequence[Captioned], draws: Sequence[float]) -> PromptBatch:
        """Pads the embeddings; ``draws`` are not used."""
        first = records[0].embeds
        embeds = np.zeros((len(records), self.tokens, first.shape[1]), first.dtype)
        for row, record in zip(embeds, records, strict=True):
            row[: len(record.embeds)] = record.embeds
        return PromptBatch(embeds=embeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """Token ids of the captions, for a text encoder that is trained.

    Attributes:
        tokenizer: The tokenizer.
        tokens: Number of ids; longer captions are truncated, with a warning.
        drop: Fraction of the captions that become the empty text, for guidance; different ones in every epoch.
    """

    tokenizer: "Tokenizer"
    tokens: int = 512
    drop: float = 0.0
    _known: dict[str, Int[np.ndarray, " S"]] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def check(self, record: Captioned) -> None:
        """Raises ValueError for a record without caption."""
        if not record.caption.strip():
            raise ValueError("it has no caption")

    def __call__(self, records: Sequence[Captioned], draws: Sequence[float]) -> PromptBatch:
        """Tokenizes the captions, or the empty text where a draw is below ``drop``."""
        captions = ["" if draw < self.drop else record.caption for record, draw in zip(records, draws, strict=True)]
        rows = [self._ids(caption) for caption in captions]
        ids = np.full((len(rows), self.tokens), self.tokenizer.pad_token_id, np.int32)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = row
        return PromptBatch(tokens=ids, lengths=np.array([len(row) for row in rows], np.int32))

    def _ids(self, caption: str) -> Int[np.ndarray, " S"]:
        """The ids of one caption, without padding."""
        from helios_jax.models.tokenization import clean_prompt

        # Reading threads share the cache without a lock: two that tokenize the same caption store equal arrays.
        known = self._known.get(caption)
        if known is None:
            ids, mask = self.tokenizer([clean_prompt(caption)], self.tokens)
            known = ids[0, : mask.sum()].copy()  # a view would keep the padding alive
            if len(self._known) < _CAPTIONS_KEPT:
                self._known[caption] = known
        return known


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithCaptions:
    """Another format, together with the captions themselves, for a reward.

    Attributes:
        text: The other format.
        size: Room for each caption, in bytes of UTF-8.
    """

    text: TextFormat
    size: int

    def check(self, record: Captioned) -> None:
        """Raises ValueError when the other format cannot use the record, or for a caption that is too long."""
        self.text.check(record)
        if (found := len(record.caption.encode())) > self.size:
            raise ValueError(f"its caption has {found} bytes, and data.captions={self.size}; raise that number")

    def __call__(self, records: Sequence[Captioned], draws: Sequence[float]) -> PromptBatch:
        """The batch of the other format with ``captions``."""
        captions = encode_captions([record.caption for record in records], self.size)
        return dataclasses.replace(self.text(records, draws), captions=captions)


def encode_captions(captions: Sequence[str], size: int) -> UInt8[np.ndarray, "B {size}"]:
    """Captions as bytes of UTF-8, with zeros up to ``size``."""
    rows = np.zeros((len(captions), size), np.uint8)
    for row, caption in zip(rows, captions, strict=True):
        encoded = np.frombuffer(caption.encode(), np.uint8)
        row[: len(encoded)] = encoded
    return rows


def decode_captions(rows: UInt8[np.ndarray, "B size"]) -> list[str]:
    """Inverse of ``encode_captions``."""
    return [row.tobytes().rstrip(b"\0").decode() for row in rows]
