"""The order of samples: an endless, restartable stream of batches (grain).

    source (one per data set and size)    tickets (record, draw), shuffled anew every epoch
        |  mixed by ratio x length
    one size                              batches of tickets: the GLOBAL batches
        |  mixed by their share of all tickets
    all sizes                             this process keeps its rows, reads records, makes arrays

Everything up to the last line is a pure function of the position in the stream: global batch j holds the same
samples for any number of processes, and the state of an iterator is j. A ticket's draw, uniform in [0, 1), depends on
(seed, position in the stream of its source) and selects the part of the clip, so a clip shows another part in every
epoch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from helios_jax.data.draws import uniform
from helios_jax.training.sources import Skipped, Source


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


def batches(
    groups: Sequence[Sequence[Source]],
    load: Callable[[Sequence[Any], Sequence[float]], Any],
    *,
    batch: int,
    rows: slice,
    seed: int,
    skipped: Skipped,
    threads: int,
) -> grain.DatasetIterator[Any]:
    """The endless stream of batches (see the module's docstring).

    Args:
        groups: Sources whose records may share a batch.
        load: Makes a batch of records and their draws.
        batch: Samples in a global batch.
        rows: Rows of the global batch that this process loads.
        seed: Seed of the order and of the draws.
        skipped: Takes records that cannot be used.
        threads: Threads that read; each works on a batch of its own.

    Raises:
        ValueError: A source is empty.
    """
    sources = [source for group in groups for source in group]
    if not all(len(source.records) for source in sources):
        raise ValueError("a source has no records")

    def tickets(number: int) -> grain.MapDataset:
        # Each source has its own seeds; otherwise sources of equal length would be shuffled alike.
        order, draws = np.random.SeedSequence([seed, number]).generate_state(2).tolist()
        # grain's random_map would create a generator for every ticket, which takes longer than all the rest.
        # ``position`` keeps counting across epochs (it comes after ``repeat``), so every epoch has different draws.
        return (
            grain.MapDataset.range(len(sources[number].records))
            .seed(order)
            .shuffle()
            .repeat()
            .map_with_index(lambda position, record: Ticket(number, record, uniform(draws, position)))
        )

    def read(wanted: Sequence[Ticket]) -> Any:
        records = [sources[ticket.source].read_next(ticket.record, skipped) for ticket in wanted]
        return load(records, [ticket.draw for ticket in wanted])

    # Tickets are batched before anything is read, and processes divide whole batches. Sharding the records among
    # processes instead would make the samples of a batch, and the saved position, depend on their number.
    per_group, totals = [], []
    for group in groups:
        weights = [source.ratio * len(source.records) for source in group]
        parts = [tickets(sources.index(source)) for source in group]
        per_group.append(grain.MapDataset.mix(parts, weights).batch(batch, drop_remainder=True, batch_fn=list))
        totals.append(sum(weights))
    stream = grain.MapDataset.mix(per_group, totals).map(lambda wanted: read(wanted[rows]))
    # The buffer bounds the batches that are kept in host memory.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(stream.to_iter_dataset(options))


def process_rows(batch: int, index: int | None, count: int | None) -> slice:
    """The rows of a global batch that belong to process ``index`` of ``count``, by default this JAX process.

    Raises:
        ValueError: The batch cannot be divided evenly, or there is no such process.
    """
    index = jax.process_index() if index is None else index
    count = jax.process_count() if count is None else count
    if batch < 1 or batch % count:
        raise ValueError(f"a global batch of {batch} cannot be divided evenly among {count} processes")
    if not 0 <= index < count:
        raise ValueError(f"process {index} of {count}: processes are numbered from 0")
    share = batch // count
    return slice(index * share, (index + 1) * share)
