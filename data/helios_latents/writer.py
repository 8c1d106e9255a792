"""Writing ``helios_latents`` one file at a time, so that a job can be interrupted, resumed and spread over hosts.

The number of files and the clips of each file are fixed before the work begins. A file is written under a temporary
name and renamed; then a line of JSON in ``progress/`` marks it as finished and states how many records it holds and
which clips were skipped. TFDS's metadata, without which the folder cannot be opened, comes last.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import etils.epath as epath
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import example_serializer, naming, splits

from helios_jax.data.helios_latents.builder import HeliosLatents
from helios_jax.data.helios_latents.record import Size, size_name
from helios_jax.safe_files import claimed, read_object, replace_text
from helios_jax.typing import Path
from helios_jax.user_input import user_path

SETTINGS_FILE = "prepare.json"

_AGAIN = "fix that and run the same command again: finished files are kept"

type Slot = tuple[Size, int]
"""One file: the latent size of its clips and its number among the files of that size."""


@runtime_checkable
class Record(Protocol):
    """What is written: ``LatentRecord``, or the record of another dataset that is laid out alike."""

    @property
    def uid(self) -> str:
        """Its name, unique in its dataset."""
        ...

    def check(self, size: Size) -> None:
        """Raises ValueError unless its arrays are finite and fit the latent size."""
        ...

    def to_example(self) -> dict[str, Any]:
        """The record as the TFDS builder stores it."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A clip that could not be encoded.

    Attributes:
        uid: Its name.
        error: The reason.
        by_rule: A rule excluded it, such as one about its length; nothing is wrong with it.
    """

    uid: str
    error: str
    by_rule: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileReport:
    """The outcome for the clips of one file.

    Attributes:
        records: Number of clips that were encoded.
        bytes: Size of their records before compression.
        skipped: Clips that were not encoded.
    """

    records: int
    bytes: int
    skipped: tuple[Failure, ...]


class LatentWriter:
    """The files of one dataset.

    Args:
        folder: Where datasets live; the files go to ``folder/helios_latents/1.0.0``.
        files: How many files there are of each latent size.
        settings: Settings that decide the content of the files, as JSON; stored with them.

    Raises:
        ValueError: The folder was begun with other settings.
    """

    def __init__(self, folder: Path, files: Mapping[Size, int], settings: Mapping[str, Any]) -> None:
        folder = user_path(folder, "folder")
        # A builder reads the metadata in its folder. That metadata may be damaged and is rewritten anyway, so the
        # builder is given a folder that does not exist.
        self._builder = self._make_builder(folder / "nothing")
        self.folder = folder / self._builder.name / str(self._builder.version)
        self._files = dict(files)
        features = self._builder.info.features
        self._serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        (self.folder / "progress").mkdir(parents=True, exist_ok=True)
        counts = {size_name(size): count for size, count in files.items()}
        self._claim(json.loads(json.dumps({"files": counts, **settings})))

    def _make_builder(self, folder: pathlib.Path) -> Any:
        """The TFDS builder, whose features and metadata are written."""
        return HeliosLatents(data_dir=folder)

    @property
    def slots(self) -> list[Slot]:
        """All files."""
        return [(size, i) for size, count in self._files.items() for i in range(count)]

    def is_finished(self, slot: Slot) -> bool:
        """Whether the file is complete."""
        return self._progress_file(slot).is_file()

    def write(self, slot: Slot, outcomes: Iterable[Record | Failure]) -> FileReport:
        """Writes one file, in the order of ``outcomes``.

        Raises:
            ValueError: A record does not fit, or the disk is full.
            BlockingIOError: Another process writes the same file.
        """
        with claimed(self._progress_file(slot).with_suffix(".lock"), f"{self._path(slot)} is being written"):
            return self._write(slot, outcomes)

    def _write(self, slot: Slot, outcomes: Iterable[Record | Failure]) -> FileReport:
        path, skipped, sizes = self._path(slot), [], []
        partial = path.with_name(f"{path.name}.partial")

        def examples() -> Iterator[bytes]:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    skipped.append(outcome)
                else:
                    yield self._serialize(outcome, slot)

        writer = _open(partial)
        try:
            for example in examples():
                sizes.append(len(example))
                _guarded(partial, writer.write, example)
        finally:
            _guarded(partial, writer.close)
        partial.rename(path)
        report = FileReport(records=len(sizes), bytes=sum(sizes), skipped=tuple(skipped))
        _replace_text(self._progress_file(slot), json.dumps(dataclasses.asdict(report)) + "\n")
        return report

    def report(self, slot: Slot) -> FileReport:
        """The report of a finished file. Raises ValueError if it is damaged."""
        file = self._progress_file(slot)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return FileReport(**content | {"skipped": tuple(Failure(**failure) for failure in content["skipped"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{file} is damaged ({error}); remove it and run the same command again, which encodes that file again"
            ) from error

    def finish(self) -> bool:
        """Writes the metadata if every file is finished, and returns whether that is so.

        Several hosts may call this at once, because they write the same metadata.

        Raises:
            ValueError: All clips were skipped.
        """
        if not all(map(self.is_finished, self.slots)):
            return False
        infos = []
        for size, count in self._files.items():
            reports = [self.report((size, i)) for i in range(count)]
            info = splits.SplitInfo(
                name=size_name(size),
                shard_lengths=[report.records for report in reports],
                num_bytes=sum(report.bytes for report in reports),
                filename_template=self._template(size),
            )
            infos += [info] if info.num_examples else []
        if not infos:
            failures = [failure for slot in self.slots for failure in self.report(slot).skipped]
            raise ValueError(
                f"none of {len(failures)} clips could be encoded; the first, {failures[0].uid}: {failures[0].error}"
            )
        self._builder.info.set_splits(splits.SplitDict(infos))
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="metadata-") as written:
            self._builder.info.write_to_directory(written)
            # dataset_info.json is written last because its presence marks the dataset as finished.
            for file in sorted(pathlib.Path(written).iterdir(), key=lambda file: file.name == "dataset_info.json"):
                _replace_text(self.folder / file.name, file.read_text(encoding="utf-8"))
        return True

    def _claim(self, settings: Mapping[str, Any]) -> None:
        """Stores the settings, or compares them with the stored ones."""
        file = self.folder / SETTINGS_FILE
        if not file.exists():
            _replace_text(file, json.dumps(settings, indent=2) + "\n")
        begun = read_object(
            file,
            f"it holds the settings that {self.folder} was begun with: restore it from a copy, or remove it to resume "
            "without comparing them",
        )
        if changed := sorted(key for key in {*begun, *settings} if begun.get(key) != settings.get(key)):
            listed = "; ".join(f"{key} was {begun.get(key)!r}, now {settings.get(key)!r}" for key in changed)
            raise ValueError(f"{self.folder} was begun with other settings ({listed}); choose another folder")

    def _serialize(self, record: Record, slot: Slot) -> bytes:
        try:
            record.check(slot[0])
        except ValueError as error:
            raise ValueError(f"clip {record.uid!r} cannot be written to {self._path(slot).name}: {error}") from error
        example = self._builder.info.features.encode_example(record.to_example())
        # Without this option, the order of serialised maps differs between processes.
        return self._serializer.get_tf_example(example).SerializeToString(deterministic=True)

    def _template(self, size: Size) -> naming.ShardedFileTemplate:
        return naming.ShardedFileTemplate(
            data_dir=epath.Path(self.folder),
            dataset_name=self._builder.name,
            split=size_name(size),
            filetype_suffix="array_record",
        )

    def _path(self, slot: Slot) -> pathlib.Path:
        size, index = slot
        template = self._template(size)
        return pathlib.Path(template.sharded_filepath(shard_index=index, num_shards=self._files[size]))

    def _progress_file(self, slot: Slot) -> pathlib.Path:
        size, index = slot
        return self.folder / "progress" / f"{size_name(size)}-{index:05d}.json"


def _open(path: pathlib.Path) -> ArrayRecordWriter:
    # One record per group: random access reads no more than it needs.
    return _guarded(path, ArrayRecordWriter, str(path), "group_size:1")


def _guarded(path: pathlib.Path, call: Any, *args: Any) -> Any:
    """Calls array_record, and turns its RuntimeErrors into ValueErrors."""
    try:
        return call(*args)
    except RuntimeError as error:
        raise ValueError(f"cannot write {path}: {error}; {_AGAIN}") from error


def _replace_text(file: pathlib.Path, text: str) -> None:
    """Calls ``replace_text`` and adds the advice of ``_guarded`` to its error."""
    try:
        replace_text(file, text)
    except OSError as error:
        raise OSError(f"{error}; {_AGAIN}") from error
