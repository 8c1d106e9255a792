"""Reading ``helios_latents``: random access to the records of each latent size."""

import bisect
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from helios_jax.data.helios_latents.record import LatentRecord, RecordError, Size, parse_size, size_name
from helios_jax.typing import Path


def open_latents(folder: Path) -> dict[Size, "LatentFiles"]:
    """Opens a dataset.

    Args:
        folder: The ``--out`` folder of ``helios-prepare``, or the versioned folder inside it.

    Returns:
        The records of each latent size.

    Raises:
        FileNotFoundError: There is no (finished) dataset.
        ValueError: The folder holds another kind of dataset.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(_dataset_folder(pathlib.Path(folder))))
    missing = {"uid", "caption", "latents", "anchor", "embeds"} - set(builder.info.features)
    if missing:
        raise ValueError(f"{folder} holds {builder.name} without {', '.join(sorted(missing))}; need helios_latents")
    return {parse_size(name): LatentFiles(builder, parse_size(name)) for name in builder.info.splits}


class LatentFiles(Sequence[LatentRecord]):
    """Records of one latent size.

    Args:
        builder: The dataset.
        size: Which of its sizes.
    """

    def __init__(self, builder: Any, size: Size) -> None:
        self.size = size
        self._source = builder.as_data_source(split=size_name(size))
        info = builder.info.splits[size_name(size)]
        self._files = list(map(str, info.filepaths))
        self._ends = list(itertools.accumulate(info.shard_lengths))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        """Reads one record, a ``LatentRecord``; slices are not supported.

        Raises:
            IndexError: There is no such record.
            RecordError: The record is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            return LatentRecord.from_example(self._source[index])
        # array_record, protobuf and TFDS raise different errors for damaged bytes.
        except Exception as error:
            raise RecordError(f"{self.where(index)} cannot be read: {error}") from error

    def where(self, index: int) -> str:
        """Names a record by its place."""
        file = bisect.bisect_right(self._ends, index)
        first = self._ends[file - 1] if file else 0
        return f"record {index - first} of {self._files[file]}"


def _dataset_folder(folder: pathlib.Path) -> pathlib.Path:
    """The folder with TFDS's metadata."""
    versions = sorted((folder / "helios_latents").glob("*.*.*"))
    found = folder if (folder / "features.json").is_file() else (versions or [folder])[-1]
    if (found / "dataset_info.json").is_file():
        return found
    if (found / "prepare.json").is_file():
        files = sum(json.loads((found / "prepare.json").read_text())["files"].values())
        finished = len(list((found / "progress").glob("*.json")))
        raise FileNotFoundError(
            f"{found} is not finished: {finished} of {files} files; run helios-prepare again with the same arguments"
        )
    raise FileNotFoundError(f"no helios_latents in {folder}; helios-prepare writes them")
