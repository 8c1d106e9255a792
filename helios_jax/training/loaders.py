"""Loaders: random access to clips becomes an endless, restartable stream of batches (grain).

    source (one per data set and size)    tickets (record, draw), shuffled anew every epoch
        |  mixed by ratio x length
    one size                              batches of tickets: the GLOBAL batches
        |  mixed by their share of all tickets
    all sizes                             this process keeps its rows, reads records, makes arrays

Everything up to the last line is a pure function of the position in the stream: global batch j holds the same
samples for any number of processes, and the state of an iterator is j. A ticket's draw, uniform in [0, 1), depends on
(seed, position in the stream of its source) and selects the window of the clip, so that a clip shows another window
every epoch.

A window around chunk k of a clip with latent frames z (9 per chunk), as Helios is trained (arXiv 2603.04379):

    target = z[9k : 9k + 9],   history = z[9k - 19 : 9k],   anchor = z[0]                  (1)

with zeros before the start of the clip, and a zero anchor for k = 0.
"""

import dataclasses
import json
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from absl import logging

from helios_jax.config import HistoryConfig
from helios_jax.data.helios_latents.record import LatentRecord, RecordError, Size
from helios_jax.training.batch import LatentBatch, Text, VideoBatch
from helios_jax.typing import Float, Int, Path, UInt8

if TYPE_CHECKING:
    from helios_jax.models.tokenization import Tokenizer

OnError = Literal["raise", "skip"]

_CAPTIONS_KEPT = 2**16
"""Captions whose tokens are kept: for small models tokenizing takes longer than the step."""

_WORD = 2**64 - 1


class Ticket(NamedTuple):
    """One sample of a batch, before anything is read.

    Attributes:
        source: Number of the source.
        record: Number of the record in it.
        draw: Uniform in [0, 1).
    """

    source: int
    record: int
    draw: float


@runtime_checkable
class TextFormat(Protocol):
    """How captions become ``Text``."""

    def check(self, record: LatentRecord) -> None:
        """Raises ValueError when the record's text cannot be used."""
        ...

    def __call__(self, records: Sequence[LatentRecord], draws: Sequence[float]) -> Text:
        """The text of a batch, in host memory; ``draws`` has a number in [0, 1) for each record."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedEmbeds:
    """Stored embeddings, with zero rows up to a fixed number of tokens.

    Attributes:
        tokens: Rows wanted.
    """

    tokens: int = 512

    def check(self, record: LatentRecord) -> None:
        """See ``TextFormat``."""
        rows = len(record.embeds)
        if rows == 0:
            raise ValueError("it has no text embeddings; prepare it with --text, or train on tokens")
        if rows > self.tokens:
            raise ValueError(f"its text has {rows} tokens, the loader pads to {self.tokens}; raise that number")

    def __call__(self, records: Sequence[LatentRecord], draws: Sequence[float]) -> Text:
        """See ``TextFormat``; nothing is drawn."""
        first = records[0].embeds
        embeds = np.zeros((len(records), self.tokens, first.shape[1]), first.dtype)
        for row, record in zip(embeds, records, strict=True):
            row[: len(record.embeds)] = record.embeds
        return Text(embeds=embeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """Token ids of the captions, for a text encoder that is trained.

    Attributes:
        tokenizer: The tokenizer.
        tokens: Ids wanted; longer captions lose their last ones, with a warning.
        drop: Part of the captions that give way to the empty text, for guidance; others in every epoch.
    """

    tokenizer: "Tokenizer"
    tokens: int = 512
    drop: float = 0.0
    _known: dict[str, Int[np.ndarray, " S"]] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def check(self, record: LatentRecord) -> None:
        """See ``TextFormat``."""
        if not record.caption.strip():
            raise ValueError("it has no caption")

    def __call__(self, records: Sequence[LatentRecord], draws: Sequence[float]) -> Text:
        """See ``TextFormat``."""
        captions = ["" if draw < self.drop else record.caption for record, draw in zip(records, draws, strict=True)]
        rows = [self._ids(caption) for caption in captions]
        ids = np.full((len(rows), self.tokens), self.tokenizer.pad_token_id, np.int32)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = row
        return Text(tokens=ids, lengths=np.array([len(row) for row in rows], np.int32))

    def _ids(self, caption: str) -> Int[np.ndarray, " S"]:
        """The ids of one caption, without padding."""
        from helios_jax.models.tokenization import clean_prompt

        known = self._known.get(caption)
        if known is None:
            ids, mask = self.tokenizer([clean_prompt(caption)], self.tokens)
            known = ids[0, : mask.sum()].copy()
            if len(self._known) < _CAPTIONS_KEPT:
                self._known[caption] = known
        return known


def latent_loader(
    sources: Sequence[Any],
    *,
    batch: int,
    seed: int,
    text: TextFormat | None = None,
    ratios: Sequence[float] | None = None,
    history: HistoryConfig | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    on_error: OnError = "raise",
    report: Path | None = None,
    threads: int = 4,
) -> grain.DatasetIterator[LatentBatch]:
    """Batches of windows of encoded clips; every batch has one latent size.

    Args:
        sources: Data sets: folders that ``helios-prepare`` wrote, or sequences of ``LatentRecord``.
        batch: Samples in a global batch; a multiple of ``process_count``.
        seed: Seed of the order and of the windows.
        text: How captions become arrays; ``PaddedEmbeds()`` by default.
        ratios: How often a clip of each source is seen relative to one with ratio 1, which is the default.
        history: Geometry of the context; the published one by default.
        process_index: Which rows of each batch are wanted; those of this JAX process by default.
        process_count: Of how many processes.
        on_error: What to do about a record that cannot be used: stop, or log it and take the next one of its source.
        report: With "skip": a file that gets one line of JSON for each such record.
        threads: Threads that read; each works on a batch of its own.

    Returns:
        An endless iterator of ``LatentBatch`` with numpy leaves. ``get_state()`` is a small dict that
        ``set_state()`` takes back, for any number of processes; Orbax saves it by grain.checkpoint.CheckpointSave.

    Raises:
        ValueError: Arguments that do not fit, now; RecordError, while iterating.
        FileNotFoundError: A folder holds no finished data set.
    """
    text = PaddedEmbeds() if text is None else text
    history = HistoryConfig() if history is None else history
    by_size: dict[Size, list[tuple[Sequence[Any], float]]] = {}
    for source, ratio in zip(sources, _checked_ratios(sources, ratios), strict=True):
        for size, part in _split_by_size(source).items():
            by_size.setdefault(size, []).append((part, ratio))

    def check(record: LatentRecord, size: Size) -> None:
        record.check(size)
        text.check(record)

    def load(records: Sequence[LatentRecord], draws: Sequence[float]) -> LatentBatch:
        # The whole part of a scaled draw is the chunk; what is left is uniform again.
        places = [divmod(draw * len(record.latents), 1.0) for record, draw in zip(records, draws, strict=True)]
        windows = [
            cut_window(record.latents, record.anchor, int(chunk), history.buffer_frames)
            for record, (chunk, _) in zip(records, places, strict=True)
        ]
        target, past, anchor = (np.stack(parts) for parts in zip(*windows, strict=True))
        return LatentBatch(target=target, history=past, anchor=anchor, text=text(records, [rest for _, rest in places]))

    groups = [
        [_Source(part, ratio, lambda record, size=size: check(record, size)) for part, ratio in parts]
        for size, parts in sorted(by_size.items())
    ]
    skipped = _Skipped(on_error, report)
    rows = _rows(batch, process_index, process_count)
    return _iterate(groups, load, batch=batch, rows=rows, seed=seed, skipped=skipped, threads=threads)


def video_loader(
    sources: Sequence[Any],
    *,
    batch: int,
    frames: int,
    seed: int,
    ratios: Sequence[float] | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    on_error: OnError = "raise",
    report: Path | None = None,
    threads: int = 4,
) -> grain.DatasetIterator[VideoBatch]:
    """Batches of ``frames`` successive frames from a random place in each clip.

    Args:
        sources: Random-access sequences of clips, uint8 [F, H, W, 3]; H and W are those of the first clip.
        batch: As in ``latent_loader``, like the arguments below that bear its names.
        frames: Frames wanted; shorter clips cannot be used.
        seed: See ``batch``.
        ratios: See ``batch``.
        process_index: See ``batch``.
        process_count: See ``batch``.
        on_error: See ``batch``.
        report: See ``batch``.
        threads: See ``batch``.

    Returns:
        An endless iterator of ``VideoBatch`` with numpy leaves, see ``latent_loader``.

    Raises:
        ValueError: Arguments that do not fit, now; RecordError, while iterating.
    """
    ratios = _checked_ratios(sources, ratios)
    size = np.shape(sources[0][0])[1:]

    def check(clip: Any) -> None:
        shape = np.shape(clip)
        if clip.dtype != np.uint8 or shape[1:] != size or len(shape) != 4 or shape[0] < frames:
            raise ValueError(
                f"a clip of {clip.dtype} {list(shape)}; need uint8 with at least {frames} frames of {list(size)}"
            )

    def load(clips: Sequence[UInt8[np.ndarray, "_ H W 3"]], draws: Sequence[float]) -> VideoBatch:
        starts = (int(draw * (len(clip) - frames + 1)) for clip, draw in zip(clips, draws, strict=True))
        return VideoBatch(
            frames=np.stack([clip[start : start + frames] for clip, start in zip(clips, starts, strict=True)])
        )

    group = [_Source(source, ratio, check) for source, ratio in zip(sources, ratios, strict=True)]
    skipped = _Skipped(on_error, report)
    rows = _rows(batch, process_index, process_count)
    return _iterate([group], load, batch=batch, rows=rows, seed=seed, skipped=skipped, threads=threads)


def cut_window(
    latents: Float[np.ndarray, "S T h w C"], anchor: Float[np.ndarray, "h w C"], chunk: int, history_frames: int
) -> tuple[Float[np.ndarray, "T h w C"], Float[np.ndarray, "{history_frames} h w C"], Float[np.ndarray, "1 h w C"]]:
    """Target, history and anchor of a clip's chunk, by (1)."""
    frames = latents.reshape(-1, *latents.shape[2:])
    first = chunk * latents.shape[1]
    past = frames[max(0, first - history_frames) : first]
    history = np.zeros((history_frames, *past.shape[1:]), latents.dtype)
    history[history_frames - len(past) :] = past
    return latents[chunk], history, (anchor if chunk else np.zeros_like(anchor))[None]


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    """Random access to records of one size, how often to use them, and what raises ValueError on a bad one."""

    records: Sequence[Any]
    ratio: float
    check: Callable[[Any], None]

    def where(self, index: int) -> str:
        if hasattr(self.records, "where"):
            return self.records.where(index)
        return f"record {index} of {len(self.records)} in memory"

    def read(self, index: int) -> Any:
        """Raises RecordError."""
        record = self.records[index]
        try:
            self.check(record)
        except ValueError as error:
            name = f" ({record.uid!r})" if isinstance(record, LatentRecord) else ""
            raise RecordError(f"{self.where(index)}{name} cannot be used: {error}") from error
        return record

    def read_next(self, index: int, skipped: "_Skipped") -> Any:
        """The record, or the first behind it that can be used."""
        for step in range(len(self.records)):
            tried = (index + step) % len(self.records)
            try:
                return self.read(tried)
            except RecordError as error:
                skipped.add(error)
        raise RecordError(f"none of the {len(self.records)} records can be used; the first is {self.where(0)}")


class _Skipped:
    """Records that could not be used, each reported once."""

    def __init__(self, on_error: OnError, report: Path | None) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self._raises = on_error == "raise"
        self._report = None if report is None else pathlib.Path(report)
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def add(self, error: RecordError) -> None:
        """Reports the error, or raises it."""
        if self._raises:
            raise error
        with self._lock:
            if str(error) in self._seen:
                return
            self._seen.add(str(error))
            logging.warning("skipped: %s", error)
            if self._report is not None:
                with self._report.open("a") as file:
                    file.write(json.dumps({"error": str(error)}) + "\n")


@dataclasses.dataclass(frozen=True, eq=False)
class _Part(Sequence[Any]):
    """Some records of a sequence."""

    records: Sequence[Any]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.records[self.indices[index]]

    def where(self, index: int) -> str:
        return f"record {self.indices[index]} of {len(self.records)} in memory"


def _split_by_size(source: Any) -> Mapping[Size, Sequence[Any]]:
    """The records of each latent size."""
    if isinstance(source, str | pathlib.Path):
        from helios_jax.data.helios_latents.reader import open_latents

        return open_latents(source)
    indices: dict[Size, list[int]] = {}
    for index, record in enumerate(source):
        if record.latents.ndim != 5:
            raise RecordError(f"record {index} ({record.uid!r}) has latents of shape {list(record.latents.shape)}")
        indices.setdefault(record.latents.shape[2:4], []).append(index)
    return {size: _Part(source, numbers) for size, numbers in indices.items()}


def _checked_ratios(sources: Sequence[Any], ratios: Sequence[float] | None) -> Sequence[float]:
    if isinstance(sources, str) or not sources:
        raise ValueError(f"sources={sources!r} must be a list of at least one data set")
    ratios = [1.0] * len(sources) if ratios is None else ratios
    if len(ratios) != len(sources) or min(ratios) <= 0:
        raise ValueError(f"need one ratio above 0 for each of {len(sources)} sources, got {list(ratios)}")
    return ratios


def _rows(batch: int, index: int | None, count: int | None) -> slice:
    """This process's rows of a global batch."""
    index = jax.process_index() if index is None else index
    count = jax.process_count() if count is None else count
    if batch < 1 or batch % count:
        raise ValueError(f"a global batch of {batch} cannot be divided evenly among {count} processes")
    if not 0 <= index < count:
        raise ValueError(f"process {index} of {count}: processes are numbered from 0")
    share = batch // count
    return slice(index * share, (index + 1) * share)


def _uniform(seed: int, position: int) -> float:
    """The number in [0, 1) of a position: SplitMix64 (Steele, Lea and Flood 2014), of which 53 bits are kept."""
    z = seed + (position + 1) * 0x9E3779B97F4A7C15 & _WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _WORD
    return ((z ^ z >> 31) >> 11) * 2.0**-53


def _iterate(
    groups: Sequence[Sequence[_Source]],
    load: Callable[[Sequence[Any], Sequence[float]], Any],
    *,
    batch: int,
    rows: slice,
    seed: int,
    skipped: _Skipped,
    threads: int,
) -> grain.DatasetIterator[Any]:
    """The stream of the module's drawing; the sources of a group may share batches."""
    sources = [source for group in groups for source in group]
    if not all(len(source.records) for source in sources):
        raise ValueError("a source has no records")

    def tickets(number: int) -> grain.MapDataset:
        # Seeds of their own, so that sources of equal length are not shuffled alike.
        order, draws = np.random.SeedSequence([seed, number]).generate_state(2).tolist()
        # grain's random_map would make a generator for every ticket, which takes longer than all the rest.
        return (
            grain.MapDataset.range(len(sources[number].records))
            .seed(order)
            .shuffle()
            .repeat()
            .map_with_index(lambda position, record: Ticket(number, record, _uniform(draws, position)))
        )

    def read(wanted: Sequence[Ticket]) -> Any:
        records = [sources[ticket.source].read_next(ticket.record, skipped) for ticket in wanted]
        return load(records, [ticket.draw for ticket in wanted])

    batches, totals = [], []
    for group in groups:
        weights = [source.ratio * len(source.records) for source in group]
        parts = [tickets(sources.index(source)) for source in group]
        batches.append(grain.MapDataset.mix(parts, weights).batch(batch, drop_remainder=True, batch_fn=list))
        totals.append(sum(weights))
    stream = grain.MapDataset.mix(batches, totals).map(lambda wanted: read(wanted[rows]))
    # The buffer bounds what is kept in host memory.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(stream.to_iter_dataset(options))
