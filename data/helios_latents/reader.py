"""Reading ``helios_latents``: random access to the records of each latent size."""

import bisect
import itertools
import pathlib
from collections.abc import Callable, Sequence, Set
from typing import Any

from helios_jax.data.helios_latents.record import LatentRecord, RecordError, Size, parse_size, size_name
from helios_jax.safe_files import read_object
from helios_jax.typing import Path
from helios_jax.user_input import user_path


def open_latents(folder: Path) -> dict[Size, "LatentFiles"]:
    """Opens a dataset.

    Args:
        folder: The ``--out`` folder of ``helios-prepare``, or the versioned folder inside it.

    Returns:
        The records of each latent size.

    Raises:
        FileNotFoundError: There is no (finished) dataset, or one of its files is missing.
        ValueError: The metadata is damaged, or the folder holds another kind of dataset.
    """
    return open_dataset(folder, "helios_latents", {"uid", "caption", "latents", "anchor", "embeds"}, LatentFiles)


def open_dataset(folder: Path, kind: str, fields: Set[str], files: Callable[[Any, Size], Any]) -> dict[Size, Any]:
    """Opens a dataset of one kind; see ``open_latents``.

    Args:
        folder: The folder.
        kind: Name of the dataset.
        fields: Features that its records must have.
        files: Gives access to the records of one size.
    """
    import tensorflow_datasets as tfds

    found = _dataset_folder(user_path(folder, "folder"), kind)
    for name in ("features.json", "dataset_info.json"):
        if not read_object(found / name, _REMEDY):
            raise ValueError(f"{found / name} is damaged (it is empty); {_REMEDY}")
    try:
        builder = tfds.builder_from_directory(str(found))
        names = set(builder.info.features)
    except Exception as error:  # TFDS and protobuf raise many kinds
        raise ValueError(f"the metadata in {found} is damaged: {_first_line(error)}; {_REMEDY}") from error
    if missing := fields - names:
        raise ValueError(f"{folder} holds {builder.name} without {', '.join(sorted(missing))}; need {kind}")
    try:
        opened = {parse_size(name): files(builder, parse_size(name)) for name in builder.info.splits}
    except Exception as error:
        info = found / "dataset_info.json"
        raise ValueError(f"{info} does not describe its files: {_first_line(error)}; {_REMEDY}") from error
    for size, records in opened.items():
        records.check_files(found, size)
    return opened


_REMEDY = "run helios-prepare again with the same arguments, which keeps finished files and rewrites the metadata"


class LatentFiles(Sequence[Any]):
    """Records of one latent size, each a ``LatentRecord``.

    Args:
        builder: The dataset.
        size: Which of its sizes.
    """

    record_type: Any = LatentRecord

    def __init__(self, builder: Any, size: Size) -> None:
        self.size = size
        self._source = builder.as_data_source(split=size_name(size))
        info = builder.info.splits[size_name(size)]
        self._files = list(map(str, info.filepaths))
        self._lengths = list(info.shard_lengths)
        self._ends = list(itertools.accumulate(self._lengths))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        """Reads one record; slices are not supported.

        Raises:
            IndexError: There is no such record.
            RecordError: The record is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            return self.record_type.from_example(self._source[index])
        # array_record, protobuf and TFDS raise different errors for damaged bytes.
        except Exception as error:
            raise RecordError(f"{self.where(index)} cannot be read: {_first_line(error)}") from error

    def check_files(self, folder: pathlib.Path, size: Size) -> None:
        """Raises an error unless all files exist directly in ``folder``."""
        for file, records in zip(map(pathlib.Path, self._files), self._lengths, strict=True):
            if file.parent != folder:
                raise ValueError(
                    f"{folder / 'dataset_info.json'} names the file {file}, which is outside of its folder"
                )
            if records < 0:
                raise ValueError(f"{folder / 'dataset_info.json'} gives {file.name} {records} records; {_REMEDY}")
            if records and not file.is_file():
                raise FileNotFoundError(
                    f"{file} is missing, with {records} clips of size {size_name(size)}; put it back, or remove "
                    f"{folder / 'progress' / f'{size_name(size)}-*.json'} of that file and run helios-prepare again"
                )

    def where(self, index: int) -> str:
        """Names a record by its place."""
        file = bisect.bisect_right(self._ends, index)
        first = self._ends[file - 1] if file else 0
        return f"record {index - first} of {self._files[file]}"


def _dataset_folder(folder: pathlib.Path, kind: str) -> pathlib.Path:
    """The folder with TFDS's metadata."""
    versions = sorted((folder / kind).glob("*.*.*"))
    found = folder if (folder / "features.json").is_file() else (versions or [folder])[-1]
    if (found / "dataset_info.json").is_file():
        return found
    if (found / "prepare.json").is_file():
        files = sum(read_object(found / "prepare.json", _REMEDY).get("files", {}).values())
        finished = len(list((found / "progress").glob("*.json")))
        raise FileNotFoundError(
            f"{found} is not finished: {finished} of {files} files; run helios-prepare again with the same arguments"
        )
    raise FileNotFoundError(f"no {kind} in {folder}; helios-prepare writes them")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
