"""Loaders that turn data sets into endless, restartable iterators over batches.

Which samples a batch holds, and in which order, is decided in ``tickets``; which part of a clip a sample shows, in
``windows``; how its caption becomes arrays, in ``text_formats``; and what happens to bad records, in ``sources``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from helios_jax.config import HistoryConfig
from helios_jax.data.helios_latents.record import LatentRecord, Size
from helios_jax.training.batch import VideoBatch
from helios_jax.training.sources import OnError, Skipped, Source, checked_ratios, split_by_size
from helios_jax.training.text_formats import PaddedEmbeds, TextFormat
from helios_jax.training.tickets import batches, process_rows
from helios_jax.training.windows import window_batch, window_pairs
from helios_jax.typing import Path, UInt8


def latent_loader(
    sources: Sequence[Any],
    *,
    batch: int,
    seed: int,
    text: TextFormat | None = None,
    ratios: Sequence[float] | None = None,
    history_config: HistoryConfig | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    on_error: OnError = "raise",
    report: Path | None = None,
    threads: int = 4,
    windows: int = 1,
) -> grain.DatasetIterator[Any]:
    """Batches of windows of encoded clips; every batch has one latent size.

    Args:
        sources: Data sets: folders that ``helios-prepare`` wrote, or sequences of ``LatentRecord``.
        batch: Samples in a global batch; a multiple of ``process_count``.
        seed: Seed of the order and of the windows.
        text: How captions become arrays; ``PaddedEmbeds()`` by default.
        ratios: How often a clip of each source is seen relative to one with ratio 1, which is the default.
        history_config: Geometry of the context; the published one by default.
        process_index: Process that loads its rows of each batch; this JAX process by default.
        process_count: Number of processes that share each batch.
        on_error: What to do about a record that cannot be used: stop, or log it and take the next one of its source.
        report: With "skip": a file that receives one line of JSON for each such record.
        threads: Threads that read; each works on a batch of its own.
        windows: Windows of each sample, 1 or 2.

    Returns:
        An endless iterator of ``LatentBatch`` (``LatentPair`` with two windows) with numpy leaves. ``get_state()``
        returns a small dict that ``set_state()`` accepts on any number of processes; Orbax saves it with
        grain.checkpoint.CheckpointSave.

    Raises:
        ValueError: Arguments do not fit; while iterating, RecordError: a record cannot be used.
        FileNotFoundError: A folder holds no finished data set.
    """
    text = PaddedEmbeds() if text is None else text
    history_config = HistoryConfig() if history_config is None else history_config
    by_size: dict[Size, list[tuple[Sequence[Any], float]]] = {}
    for source, ratio in zip(sources, checked_ratios(sources, ratios), strict=True):
        for size, part in split_by_size(source).items():
            by_size.setdefault(size, []).append((part, ratio))

    def check(record: LatentRecord, size: Size) -> None:
        record.check(size)
        text.check(record)

    # Sorted: sources are seeded by their numbers, which must not depend on the size that was found first.
    groups = [
        [Source(part, ratio, functools.partial(check, size=size)) for part, ratio in parts]
        for size, parts in sorted(by_size.items())
    ]
    return batches(
        groups,
        functools.partial(
            window_pairs if windows == 2 else window_batch, history_frames=history_config.buffer_frames, text=text
        ),
        batch=batch,
        rows=process_rows(batch, process_index, process_count),
        seed=seed,
        skipped=Skipped(on_error, report),
        threads=threads,
    )


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
        batch: As in ``latent_loader``.
        frames: Frames of each sample; shorter clips cannot be used.
        seed: As in ``latent_loader``.
        ratios: As in ``latent_loader``.
        process_index: As in ``latent_loader``.
        process_count: As in ``latent_loader``.
        on_error: As in ``latent_loader``.
        report: As in ``latent_loader``.
        threads: As in ``latent_loader``.

    Returns:
        An endless iterator of ``VideoBatch`` with numpy leaves, see ``latent_loader``.

    Raises:
        ValueError: Arguments do not fit; while iterating, RecordError: a record cannot be used.
    """
    ratios = checked_ratios(sources, ratios)
    size = np.shape(sources[0][0])[1:]

    def check(clip: Any) -> None:
        shape = np.shape(clip)
        if clip.dtype != np.uint8 or shape[1:] != size or len(shape) != 4 or shape[0] < frames:
            raise ValueError(
                f"a clip of {clip.dtype} {list(shape)}; need uint8 with at least {frames} frames of {list(size)}"
            )

    def load(clips: Sequence[UInt8[np.ndarray, "_ H W 3"]], draws: Sequence[float]) -> VideoBatch:
        # + 1 includes the last start, which shows the end of the clip.
        starts = (int(draw * (len(clip) - frames + 1)) for clip, draw in zip(clips, draws, strict=True))
        return VideoBatch(
            frames=np.stack([clip[start : start + frames] for clip, start in zip(clips, starts, strict=True)])
        )

    # One group: all clips have the same size, so clips of several sources may share a batch.
    return batches(
        [[Source(source, ratio, check) for source, ratio in zip(sources, ratios, strict=True)]],
        load,
        batch=batch,
        rows=process_rows(batch, process_index, process_count),
        seed=seed,
        skipped=Skipped(on_error, report),
        threads=threads,
    )
