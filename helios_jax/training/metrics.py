"""Where the numbers of a run go: one protocol, two writers."""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from helios_jax.typing import Path


@runtime_checkable
class MetricWriter(Protocol):
    """Takes scalars by step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records values of one step."""
        ...

    def close(self) -> None:
        """Finishes the files."""
        ...


class JsonLines:
    """One JSON object per line in ``<folder>/metrics.jsonl``, on disk when ``write`` returns.

    A resumed run appends. Where it repeats steps that a killed one had written, the last line of a step counts.
    """

    def __init__(self, folder: Path) -> None:
        self.path = pathlib.Path(folder) / "metrics.jsonl"
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        self._file = self.path.open("a")
        if torn:  # by a kill in the middle of a line
            self._file.write("\n")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricWriter``."""
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """See ``MetricWriter``."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard, in ``<folder>/tensorboard``."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(pathlib.Path(folder) / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricWriter``."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See ``MetricWriter``."""
        self._writer.close()


class Writers:
    """Several writers as one."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = tuple(writers)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricWriter``."""
        for writer in self._writers:
            writer.write(step, values)

    def close(self) -> None:
        """See ``MetricWriter``."""
        for writer in self._writers:
            writer.close()


def read_metrics(file: Path) -> dict[int, dict[str, float]]:
    """What ``JsonLines`` wrote: step -> values; a line that a kill cut short is left out."""
    records: dict[int, dict[str, float]] = {}
    for line in pathlib.Path(file).read_text().splitlines():
        if line.endswith("}"):
            record = json.loads(line)
            records[record.pop("step")] = record
    return records
