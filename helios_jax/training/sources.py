"""Sources: random access to the records for batches, and the handling of records that cannot be used."""

import dataclasses
import json
import math
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from absl import logging

from helios_jax.data.helios_latents.record import RecordError, Size
from helios_jax.typing import Path

OnError = Literal["raise", "skip"]
"""What to do about a record that cannot be used: stop, or report it and take the next one of its source."""


class Skipped:
    """Records that could not be used, each reported once.

    Args:
        on_error: See ``OnError``.
        report: A file that gets one line of JSON for each.

    Raises:
        ValueError: ``on_error`` is neither of the two.
    """

    def __init__(self, on_error: OnError, report: Path | None) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self._raises = on_error == "raise"
        self._report = None if report is None else pathlib.Path(report)
        self._seen: set[str] = set()
        self._lock = threading.Lock()  # several threads read

    def add(self, error: RecordError) -> None:
        """Reports the error, or raises it."""
        if self._raises:
            raise error
        with self._lock:
            # A bad record comes up again in every epoch.
            if str(error) in self._seen:
                return
            self._seen.add(str(error))
            logging.warning("skipped: %s", error)
            if self._report is not None:
                with self._report.open("a") as file:
                    file.write(json.dumps({"error": str(error)}) + "\n")


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Random access to records of one size.

    Attributes:
        records: The records.
        ratio: How often to use a record, relative to a source with ratio 1.
        check: Raises ValueError for a record that cannot be used.
    """

    records: Sequence[Any]
    ratio: float
    check: Callable[[Any], None]

    def where(self, index: int) -> str:
        """Names a record by its place."""
        if hasattr(self.records, "where"):
            return self.records.where(index)
        return f"record {index} of {len(self.records)} in memory"

    def read(self, index: int) -> Any:
        """The record. Raises RecordError if it cannot be used."""
        record = self.records[index]
        try:
            self.check(record)
        except ValueError as error:
            name = f" ({record.uid!r})" if hasattr(record, "uid") else ""  # clips of pixels have none
            raise RecordError(f"{self.where(index)}{name} cannot be used: {error}") from error
        return record

    def read_next(self, index: int, skipped: Skipped) -> Any:
        """The record, or the first after it that can be used.

        The replacement depends on the records alone, not on what was read before. Resumed runs and runs on another
        number of processes therefore replace a bad record with the same good one.

        Raises:
            RecordError: None can be used, or ``skipped`` raises.
        """
        for step in range(len(self.records)):
            tried = (index + step) % len(self.records)
            try:
                return self.read(tried)
            except RecordError as error:
                skipped.add(error)
        raise RecordError(f"none of the {len(self.records)} records can be used; the first is {self.where(0)}")


class InMemory(Sequence[Any]):
    """All records of a sequence, read into memory. Reading a damaged record raises its error, as in the sequence.

    Args:
        records: The sequence, with a method ``where``.
        on_error: "raise": raise the first error at once.
    """

    def __init__(self, records: Any, on_error: OnError) -> None:
        self.where = records.where
        self._records: list[Any] = []
        for index in range(len(records)):
            try:
                self._records.append(records[index])
            except RecordError as error:
                if on_error == "raise":
                    raise
                self._records.append(error)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        record = self._records[index]
        if isinstance(record, RecordError):
            raise RecordError(str(record))
        return record


def split_by_size(source: Any) -> Mapping[Size, Sequence[Any]]:
    """Groups records by latent size, because a batch has only one size.

    Args:
        source: A folder that ``helios-prepare`` wrote, a sequence of ``LatentRecord``, or such groups already.

    Raises:
        FileNotFoundError: The folder holds no finished data set.
        RecordError: The latents of a record have no size.
    """
    if isinstance(source, Mapping):
        return source
    if isinstance(source, str | pathlib.Path):
        from helios_jax.data.helios_latents.reader import open_latents

        return open_latents(source)
    indices: dict[Size, list[int]] = {}
    for index, record in enumerate(source):
        if record.latents.ndim != 5:
            raise RecordError(f"record {index} ({record.uid!r}) has latents of shape {list(record.latents.shape)}")
        indices.setdefault(record.latents.shape[2:4], []).append(index)
    return {size: _Part(source, numbers) for size, numbers in indices.items()}


def checked_ratios(sources: Sequence[Any], ratios: Sequence[float] | None) -> Sequence[float]:
    """One ratio for each source, 1 by default. Raises ValueError if they do not fit."""
    if isinstance(sources, str) or not sources:
        raise ValueError(f"sources={sources!r} must be a list of at least one data set")
    ratios = [1.0] * len(sources) if ratios is None else ratios
    if len(ratios) != len(sources) or not all(0 < ratio < math.inf for ratio in ratios):
        raise ValueError(f"need one ratio above 0 for each of {len(sources)} sources, got {list(ratios)}")
    return ratios


@dataclasses.dataclass(frozen=True, eq=False)
class _Part(Sequence[Any]):
    """Some records of a sequence, named by their places in the whole sequence."""

    records: Sequence[Any]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.records[self.indices[index]]

    def where(self, index: int) -> str:
        return f"record {self.indices[index]} of {len(self.records)} in memory"
