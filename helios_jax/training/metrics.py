"""Metrics of a step, and a writer that records them as JSON lines. The writer for TensorBoard is in ``tensorboard``."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from helios_jax.typing import Array, Float, Path

Metrics = dict[str, Float[Array, ""]]
"""Scalars of a step by name, on the device; means over the samples of the batch."""


@runtime_checkable
class MetricWriter(Protocol):
    """Records scalars, and the images and videos of validation, by step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records values of one step."""
        ...

    def show(self, step: int, files: Sequence[pathlib.Path]) -> None:
        """Records the images (PNG) and videos (mp4) among ``files``."""
        ...

    def close(self) -> None:
        """Finishes the files."""
        ...


class JsonLines:
    """One JSON object per line in ``<folder>/metrics.jsonl``, on disk when ``write`` returns.

    A resumed run appends. It may repeat steps that a killed run had already written; then the last value of a metric
    counts. Lines need not have the same metrics, and a step may have several lines: of training and of validation.
    """

    def __init__(self, folder: Path) -> None:
        self.path = pathlib.Path(folder) / "metrics.jsonl"
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with naming(self.path):
            # Without a buffer, which would be written again when a file on a full disk is closed.
            self._file = self.path.open("ab", buffering=0)
            # A kill cut the last line short; the next record must not continue it.
            if torn:
                self._append("\n")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricWriter``."""
        with naming(self.path):
            self._append(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")

    def _append(self, text: str) -> None:
        rest = text.encode()
        while rest:  # The last bytes of a disk are written before it is found to be full.
            rest = rest[self._file.write(rest) :]

    def show(self, step: int, files: Sequence[pathlib.Path]) -> None:
        """Records nothing, because the files are already in the folder of the run."""

    def close(self) -> None:
        """See ``MetricWriter``."""
        self._file.close()


@contextlib.contextmanager
def naming(file: pathlib.Path) -> Iterator[None]:
    """Names the file in an OSError while it is written: that of a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {file}: {error.strerror or error}; the run resumes from its checkpoint") from error


class Writers:
    """Several writers as one."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = tuple(writers)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricWriter``."""
        for writer in self._writers:
            writer.write(step, values)

    def show(self, step: int, files: Sequence[pathlib.Path]) -> None:
        """See ``MetricWriter``."""
        for writer in self._writers:
            writer.show(step, files)

    def close(self) -> None:
        """See ``MetricWriter``."""
        with contextlib.ExitStack() as stack:  # closes all of them, even if one fails
            for writer in self._writers:
                stack.callback(writer.close)


def read_metrics(file: Path) -> dict[int, dict[str, float]]:
    """Reads what ``JsonLines`` wrote: step -> values. Damaged and incomplete lines are skipped."""
    records: dict[int, dict[str, float]] = {}
    for line in pathlib.Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            record = json.loads(line)
            step = record.pop("step")
            records[step] = records.get(step, {}) | record
    return records
