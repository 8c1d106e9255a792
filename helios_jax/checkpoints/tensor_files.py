"""Folders of safetensors files, sharded with an index or single, as the Hugging Face libraries write them."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from helios_jax.checkpoints.components import read_json
from helios_jax.config.fields import shown
from helios_jax.user_input import plain_name, user_path

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
"""Stored dtypes that a checkpoint may use."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """The header's entry for one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype


class TensorFolder:
    """Read access to all tensors of a folder, or of one file, by name and by slice, without loading whole files.

    Attributes:
        tensors: The headers' entries, by name of the tensor.
        metadata: The text entries of the headers.

    Raises:
        FileNotFoundError: The folder, its weights or a shard named by the index is missing.
        ValueError: A file is not a complete safetensors file, the index cannot be used, or a tensor is in two files.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._handles: dict[Path, Any] = {}
        self._stack = contextlib.ExitStack()
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        path = user_path(path)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            if path.is_file():
                self._add(path, None)
            else:
                files, weight_map = _weight_files(path)
                for file in files:
                    self._add(file, weight_map)
                if weight_map and (missing := sorted(weight_map.keys() - self.tensors.keys())):
                    raise ValueError(
                        f"{path}: the index says that {missing[0]!r} is in {weight_map[missing[0]]}, and it is not"
                        + (f" (nor are {len(missing) - 1} other tensors where they should be)" if missing[1:] else "")
                    )
            undo.pop_all()

    def _add(self, file: Path, weight_map: Mapping[str, str] | None) -> None:
        """Adds the tensors of a file. A file that the index does not name must not hold tensors of other files."""
        handle = self._open(file)
        listed = weight_map is None or file.name in weight_map.values()
        if listed:
            self.metadata |= handle.metadata() or {}
        for name in handle.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
            if name in self.tensors:
                raise ValueError(
                    f"{file.parent}: the tensor {name!r} is in {self.tensors[name].file.name} and in {file.name}; "
                    "remove the file that does not belong there"
                )
            if not listed:
                continue
            if weight_map and name not in weight_map:
                raise ValueError(f"{file} holds {name!r}, which the index does not list; download the index again")
            if weight_map and weight_map[name] != file.name:
                raise ValueError(f"{file} holds {name!r}, and the index says that it is in {weight_map[name]}")
            view = handle.get_slice(name)
            dtype = DTYPES.get(view.get_dtype())
            if dtype is None:
                raise ValueError(f"{file}: tensor {name!r} has dtype {view.get_dtype()}; expected {list(DTYPES)}")
            self.tensors[name] = TensorInfo(file=file, shape=tuple(view.get_shape()), dtype=dtype)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Reads a tensor, or the part of it that ``index`` selects."""
        handle = self._handles[self.tensors[name].file]
        return handle.get_slice(name)[index] if index else handle.get_tensor(name)

    def close(self) -> None:
        """Closes the files."""
        self._stack.close()

    def __enter__(self) -> "TensorFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, file: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if not file.is_file():
            raise ValueError(f"{file} must be a safetensors file, and it is a folder or a device")
        try:
            self._handles[file] = self._stack.enter_context(safe_open(file, framework="numpy"))
        except SafetensorError as error:
            size = file.stat().st_size
            raise ValueError(
                f"{file} ({size:,} bytes) is not a complete safetensors file ({error}); "
                "it was probably cut short while downloading or copying: fetch it again"
            ) from error
        return self._handles[file]


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The safetensors files of a folder, those in the index first, and the file of each tensor in the index."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: a component's folder with config.json and safetensors is needed")
    files = sorted(folder.glob("*.safetensors"))
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise ValueError(f"{folder} has several indices, {[index.name for index in indices]}; keep the one that counts")
    if indices:
        weight_map = _read_index(indices[0])
        shards = sorted(set(weight_map.values()))
        missing = [shard for shard in shards if not (folder / shard).exists()]
        if missing:
            raise FileNotFoundError(f"{folder}: {indices[0].name} names shards that are not there: {missing}")
        return [folder / shard for shard in shards] + [file for file in files if file.name not in shards], weight_map
    if not files:
        found = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(f"{folder} holds no *.safetensors file; found {shown(found)}")
    return files, None


def _read_index(file: Path) -> dict[str, str]:
    """The ``weight_map`` of an index: tensor -> name of its file, which is in the folder of the index."""
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{file}: weight_map={shown(weight_map)}; expected an object with the file of each tensor")
    for tensor, shard in weight_map.items():
        what = f"{file}: the file of {tensor:.80}"
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise ValueError(f"{what} is {shown(shard)}; expected a name that ends in .safetensors")
        plain_name(shard, what)
    return weight_map


def write_tensors(
    folder: Path, stem: str, tensors: Iterable[tuple[str, tuple[int, ...], np.dtype]], read: Any, shard_bytes: int
) -> list[Path]:
    """Writes tensors as one file, or as numbered shards with an index when they exceed ``shard_bytes``.

    Args:
        folder: Where to write; it must exist.
        stem: File name stem, such as "diffusion_pytorch_model".
        tensors: Name, shape and dtype of every tensor, in the order of the files.
        read: ``name -> array``; called once per tensor, with only one shard in host memory at a time.
        shard_bytes: Largest size of a file.

    Returns:
        The files written.
    """
    shards = list(_pack(tensors, shard_bytes))
    total = sum(size for _, size in shards)
    weight_map: dict[str, str] = {}
    files = []
    for number, (names, _) in enumerate(shards, 1):
        suffix = "" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}"
        file = folder / f"{stem}{suffix}.safetensors"
        save_tensors(file, {name: read(name) for name in names})
        weight_map |= dict.fromkeys(names, file.name)
        files.append(file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files.append(folder / f"{stem}.safetensors.index.json")
        files[-1].write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return files


def save_tensors(file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one safetensors file, which gets its name only when it is complete.

    Raises:
        OSError: It cannot be written, such as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    partial = file.with_name(f"{file.name}.unfinished{os.getpid()}")
    try:
        save_file(dict(tensors), partial, metadata={"format": "pt", **(metadata or {})})
        partial.rename(file)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _pack(tensors: Iterable[tuple[str, tuple[int, ...], np.dtype]], limit: int) -> Iterator[tuple[list[str], int]]:
    """Groups tensors, in order, into shards of at most ``limit`` bytes (a larger tensor gets its own shard)."""
    names: list[str] = []
    size = 0
    for name, shape, dtype in tensors:
        bytes_ = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if names and size + bytes_ > limit:
            yield names, size
            names, size = [], 0
        names.append(name)
        size += bytes_
    yield names, size
