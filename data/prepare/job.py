"""The work of ``helios-prepare``, file by file.

Which clip goes into which file follows from the list of clips alone. A worker takes every n-th file and skips finished
ones; the worker that finds all files finished writes the dataset's metadata. A file is always written whole, so an
interrupted and resumed run leaves the same bytes as an uninterrupted one.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from helios_jax.data.helios_latents.record import Size, size_name
from helios_jax.data.helios_latents.writer import Failure, LatentWriter, Record
from helios_jax.typing import Path


@runtime_checkable
class Named(Protocol):
    """An item of a job: a clip, or a file to import.

    An optional attribute ``identity`` holds, as JSON, everything that determines its record; the default is its name.
    """

    @property
    def uid(self) -> str:
        """Its name, unique in the job."""
        ...


@runtime_checkable
class Encode(Protocol):
    """Turns named items into records."""

    def __call__(self, items: Sequence[Any], size: Size) -> Iterator[Record | Failure]:
        """One record, or a failure, for each item, in order."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """The progress of a worker.

    Attributes:
        done: Clips that it has worked on in this run.
        total: Clips that it has to work on in this run.
        skipped: Clips that could not be encoded.
        seconds: Seconds since the start.
    """

    done: int
    total: int
    skipped: int
    seconds: float

    def __str__(self) -> str:
        """The progress line."""
        rate = self.done / self.seconds if self.seconds else 0.0
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate else ""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.done} of {self.total} clips{skipped}, {rate:.2f} clips/s, {left}"


def write_latents(
    work: Mapping[Size, Sequence[Named]],
    make_encode: Callable[[], Encode],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    clips_per_file: int = 64,
    part: tuple[int, int] = (0, 1),
    on_clip: Callable[[Status], None] = lambda status: None,
    make_writer: Callable[..., LatentWriter] = LatentWriter,
) -> bool:
    """Encodes a list of clips to ``helios_latents``, or this worker's part of it.

    Args:
        work: The clips of each latent size.
        make_encode: Creates the encoder; called only if there is something left to do.
        folder: Where datasets live.
        settings: Other settings that decide the content of the files, as JSON.
        clips_per_file: Clips in each file.
        part: Number of this worker, and the number of workers.
        on_clip: Called after each clip.
        make_writer: Creates the writer of another dataset, with the arguments of ``LatentWriter``.

    Returns:
        Whether the dataset is complete; if not, other workers still have work to do.

    Raises:
        ValueError: The folder was begun with other clips or settings, nothing could be encoded, or the disk is full.
    """
    index, count = part
    if not 0 <= index < count:
        raise ValueError(f"worker {index} of {count}: workers are numbered from 0 to {count - 1}")
    files = {size: list(itertools.batched(items, clips_per_file)) for size, items in work.items() if items}
    identities = [[getattr(item, "identity", item.uid) for item in work[size]] for size in files]
    digest = hashlib.blake2b(json.dumps(identities).encode(), digest_size=16)
    writer = make_writer(
        folder,
        {size: len(contents) for size, contents in files.items()},
        {"clips": digest.hexdigest(), "clips_per_file": clips_per_file, **settings},
    )
    mine = [slot for slot in writer.slots[index::count] if not writer.is_finished(slot)]
    if mine:
        encode = make_encode()
        total = sum(len(files[size][i]) for size, i in mine)
        done = skipped = 0
        start = time.monotonic()

        def counted(outcomes: Iterator[Record | Failure]) -> Iterator[Record | Failure]:
            nonlocal done, skipped
            for outcome in outcomes:
                yield outcome
                done += 1
                skipped += isinstance(outcome, Failure)
                on_clip(Status(done=done, total=total, skipped=skipped, seconds=time.monotonic() - start))

        for size, i in mine:
            writer.write((size, i), counted(encode(files[size][i], size)))
    if not writer.finish():
        return False
    for size, contents in files.items():
        reports = (writer.report((size, i)) for i in range(len(contents)))
        write_skipped(folder, size, [failure for report in reports for failure in report.skipped])
    return True


def skipped_file(folder: Path, size: Size) -> pathlib.Path:
    """The list of clips of one size that were skipped, one JSON object per line."""
    return pathlib.Path(folder) / f"skipped-{size_name(size)}.jsonl"


def read_skipped(folder: Path, sizes: Iterable[Size]) -> list[Failure]:
    """The contents of ``skipped_file`` for all of these sizes."""
    files = [skipped_file(folder, size) for size in sizes]
    lines = [line for file in files if file.is_file() for line in file.read_text().splitlines()]
    return [Failure(**json.loads(line)) for line in lines]


def write_skipped(folder: Path, size: Size, failures: Sequence[Failure]) -> None:
    """Writes ``skipped_file``."""
    lines = [json.dumps(dataclasses.asdict(failure)) + "\n" for failure in failures]
    skipped_file(folder, size).write_text("".join(lines))
