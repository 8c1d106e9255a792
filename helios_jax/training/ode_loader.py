"""Batches of recorded trajectories: chunks as samples.

A ticket (``tickets``) is a recorded video, from whose chunks n different ones are drawn. A global batch of B samples
thus shows B / n videos, and

    sample i is chunk c(i mod n) of video floor(i / n)                                         (1)

so that ``accumulation=n`` trains on one chunk of every video at a time: microbatch m holds samples m, m + n, ...

The context of a chunk are the chunks before it, as recorded (``windows``). Where a chunk has fewer points than a first
chunk, they are repeated, since all samples of a batch have one shape; a uniform choice among them stays uniform.
"""

import functools
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from helios_jax.config import HistoryConfig
from helios_jax.data.helios_latents.record import Size
from helios_jax.data.helios_ode.record import OdeRecord
from helios_jax.training.batch import OdeBatch, OdePoints
from helios_jax.training.sources import OnError, Skipped, Source, checked_ratios, split_by_size
from helios_jax.training.text_formats import PaddedEmbeds, TextFormat
from helios_jax.training.tickets import batches, process_rows
from helios_jax.training.windows import cut_window
from helios_jax.typing import Path
from helios_jax.user_input import whole_number


def ode_loader(
    sources: Sequence[Any],
    *,
    batch: int,
    seed: int,
    chunks: int = 3,
    text: TextFormat | None = None,
    ratios: Sequence[float] | None = None,
    history_config: HistoryConfig | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    on_error: OnError = "raise",
    report: Path | None = None,
    threads: int = 4,
) -> grain.DatasetIterator[OdeBatch]:
    """Batches of chunks of recorded videos; every batch has one latent size.

    Args:
        sources: Data sets: what ``open_ode`` returns, or sequences of ``OdeRecord``.
        batch: Samples in a global batch, by (1); a multiple of ``chunks`` and ``process_count``.
        seed: Seed of the order and of the choice of chunks.
        chunks: n, different chunks of each video; 3 of 5 as published.
        text: As in ``latent_loader``, as for the other arguments.
        ratios: As in ``latent_loader``.
        history_config: As in ``latent_loader``.
        process_index: As in ``latent_loader``.
        process_count: As in ``latent_loader``.
        on_error: As in ``latent_loader``.
        report: As in ``latent_loader``.
        threads: As in ``latent_loader``.

    Returns:
        An endless iterator of ``OdeBatch`` with numpy leaves, see ``latent_loader``.

    Raises:
        ValueError: Arguments do not fit; while iterating, records of a batch were recorded with different steps, or
            RecordError: a record cannot be used.
    """
    text = PaddedEmbeds() if text is None else text
    history_config = HistoryConfig() if history_config is None else history_config
    whole_number(chunks, "chunks", at_least=1)
    if batch % chunks:
        raise ValueError(f"a batch of {batch} samples must be a multiple of chunks={chunks}, the samples of a video")
    by_size: dict[Size, list[tuple[Sequence[Any], float]]] = {}
    for source, ratio in zip(sources, checked_ratios(sources, ratios), strict=True):
        for size, part in split_by_size(source).items():
            by_size.setdefault(size, []).append((part, ratio))

    def check(record: OdeRecord, size: Size) -> None:
        record.check(size)
        text.check(record)
        if record.chunks < chunks:
            raise ValueError(f"it has {record.chunks} chunks; {chunks} are drawn from each video")
        for level, (first, later) in enumerate(record.grid):
            if first % later:
                raise ValueError(
                    f"level {level}: its first chunk has {first} points, which is no multiple of the {later} of others"
                )

    groups = [
        [Source(part, ratio, functools.partial(check, size=size)) for part, ratio in parts]
        for size, parts in sorted(by_size.items())
    ]
    return batches(
        groups,
        functools.partial(ode_batch, chunks=chunks, history_frames=history_config.buffer_frames, text=text),
        batch=batch // chunks,
        rows=process_rows(batch // chunks, process_index, process_count),
        seed=seed,
        skipped=Skipped(on_error, report),
        threads=threads,
    )


def draw_chunks(draw: float, total: int, count: int) -> tuple[list[int], float]:
    """``count`` different ones of ``total`` chunks, in ascending order, and a draw that is independent of them.

    Args:
        draw: Uniform in [0, 1).
        total: Chunks of the video.
        count: How many to choose; all subsets are equally likely.
    """
    left, chosen = list(range(total)), []
    for _ in range(count):
        # The integer part of the scaled draw chooses; the fraction is again uniform, and independent of the choice.
        place, draw = divmod(draw * len(left), 1.0)
        chosen.append(left.pop(int(place)))
    return sorted(chosen), draw


def ode_batch(
    records: Sequence[OdeRecord], draws: Sequence[float], *, chunks: int, history_frames: int, text: TextFormat
) -> OdeBatch:
    """A batch with some chunks of each video, by (1).

    Args:
        records: Videos of one latent size.
        draws: A number in [0, 1) for each, which decides its chunks and how its text is used.
        chunks: Chunks of each video.
        history_frames: Latent frames of history.
        text: How captions become arrays.

    Raises:
        ValueError: The records have different numbers of points.
    """
    if any(record.grid != records[0].grid for record in records):
        grids = sorted({record.grid for record in records})
        raise ValueError(f"recorded with different steps of the student, which a batch cannot mix: {grids}")
    chosen = [draw_chunks(draw, record.chunks, chunks) for record, draw in zip(records, draws, strict=True)]
    samples, windows = [], []
    for record, (own, _) in zip(records, chosen, strict=True):
        video = record.latents
        samples += [(record, chunk) for chunk in own]
        windows += [cut_window(video, video[0, 0], chunk, history_frames) for chunk in own]
    _, history, anchor = (np.stack(parts) for parts in zip(*windows, strict=True))
    rests = [rest for _, rest in chosen for _ in range(chunks)]
    levels = range(len(records[0].first))
    return OdeBatch(
        levels=tuple(_stacked([_sample_points(record, chunk, level) for record, chunk in samples]) for level in levels),
        history=history,
        anchor=anchor,
        text=text([record for record, _ in samples], rests),
    )


def _sample_points(record: OdeRecord, chunk: int, level: int) -> tuple[np.ndarray, ...]:
    """Latents, end point, timesteps and sigmas of a chunk on a level, repeated to the number of a first chunk."""
    levels, place = record.points(chunk)
    points = levels[level]
    times = record.first[level].points // points.points
    *latents, end = points.latents[place]
    repeated = np.stack(latents * times)
    return repeated, end, np.tile(points.timesteps, times), np.tile(points.sigmas, times)


def _stacked(samples: Sequence[tuple[np.ndarray, ...]]) -> OdePoints:
    latents, end, timesteps, sigmas = (np.stack(arrays) for arrays in zip(*samples, strict=True))
    return OdePoints(latents=latents, end=end, timesteps=timesteps, sigmas=sigmas)
