"""Import of the original implementation's latent files: ``torch.save`` of a dict, read without PyTorch.

Such a file is a zip archive: ``data.pkl`` is a pickle in which tensors are references to storages, and
``data/<key>`` are the storages. A pickle can call anything, so this reader lets it call nothing: names resolve to a
short table below, or the file is refused. PIL images, which the original also keeps in these files, become
``Skipped``.
"""

import collections
import dataclasses
import pathlib
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from helios_jax.data.helios_latents.record import LatentRecord, Size
from helios_jax.data.helios_latents.writer import Failure
from helios_jax.typing import Path
from helios_jax.user_input import user_path

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "HalfStorage": np.dtype(np.float16),
    "LongStorage": np.dtype(np.int64),
}

_PIXELS = 8
"""Pixels per latent position, each side."""


def read_torch_file(path: Path) -> Any:
    """The object in a file of ``torch.save``: containers, strings and numbers, tensors as numpy arrays.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not such a file, is damaged, or holds objects of other types.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is damaged, or not written by torch.save in its zip format (PyTorch 1.6 and later): {error}"
        ) from error
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchLatents:
    """One file of chunked latents, named ``<uid>_<frames>_<height>_<width>.pt`` (sizes in pixels).

    Attributes:
        path: The file.
        uid: Its path within the folder, without the ending.
        frames: Pixel frames of the clip.
        height: Pixel rows.
        width: Pixel columns.
    """

    path: pathlib.Path
    uid: str
    frames: int
    height: int
    width: int

    @property
    def size(self) -> Size:
        """Latent rows and columns."""
        return self.height // _PIXELS, self.width // _PIXELS

    def read(self) -> LatentRecord:
        """The file as a record.

        The original normalises with means and inverse deviations rounded to bfloat16 (relative error up to 2^-9);
        its latents are kept as they are.

        Raises:
            FileNotFoundError: The file is gone.
            ValueError: It does not hold chunked latents, a caption and its embeddings.
        """
        content = read_torch_file(self.path)
        needed = ("vae_latent", "prompt_embed", "prompt_raw")
        if not isinstance(content, dict) or any(name not in content for name in needed):
            found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{self.path} holds {found}; need {', '.join(needed)}")
        latents, embeds, caption = (content[name] for name in needed)
        shape = (len(latents), latents.shape[1], 9, *self.size) if getattr(latents, "ndim", 0) == 5 else None
        if shape is None or latents.shape != shape:
            raise ValueError(
                f"{self.path} holds vae_latent {list(getattr(latents, 'shape', ()))}; its name asks for chunks "
                f"[S, C, 9, {self.size[0]}, {self.size[1]}] (a clip encoded in one piece cannot be used)"
            )
        if not isinstance(caption, str) or getattr(embeds, "ndim", 0) not in (2, 3):
            raise ValueError(f"{self.path}: prompt_raw must be a string and prompt_embed an array [tokens, width]")
        embeds = embeds.reshape(-1, embeds.shape[-1])
        latents = np.moveaxis(latents, 1, -1)
        return LatentRecord(
            uid=self.uid,
            caption=caption,
            fps=0.0,
            height=self.height,
            width=self.width,
            latents=latents,
            anchor=latents[0, 0],
            embeds=embeds[: num_tokens(embeds)],
        )


def find_torch_latents(folder: Path, *, min_frames: int) -> Sequence[TorchLatents]:
    """The ``.pt`` files in a folder and its subfolders, in the order of their names.

    Args:
        folder: Where to look.
        min_frames: Files of shorter clips are left out.

    Raises:
        FileNotFoundError: There is no such file, or no such folder.
        ValueError: A file's name does not state its size.
    """
    folder = user_path(folder, "from_pt")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the one that holds the .pt files")
    found = []
    for path in sorted(folder.rglob("*.pt")):
        numbers = path.stem.rsplit("_", 3)[1:]
        if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
            raise ValueError(f"the name of {path} is not <uid>_<frames>_<height>_<width>.pt")
        frames, height, width = map(int, numbers)
        uid = path.relative_to(folder).with_suffix("").as_posix()
        if frames >= min_frames:
            found.append(TorchLatents(path=path, uid=uid, frames=frames, height=height, width=width))
    if not found:
        raise FileNotFoundError(f"no .pt file of at least {min_frames} frames in {folder}")
    return found


def import_torch_latents(files: Sequence[TorchLatents], size: Size) -> Iterator[LatentRecord | Failure]:
    """Reads files whose latents are of ``size``; yields a record or a failure for each."""
    for file in files:
        try:
            record = file.read()
            record.check(size)
            yield record
        except ValueError as error:
            yield Failure(uid=file.uid, error=str(error))


def num_tokens(embeds: np.ndarray) -> int:
    """Rows up to the last that is not zero; the rest is padding."""
    rows = np.flatnonzero(np.any(embeds != 0, axis=-1))
    return int(rows[-1]) + 1 if rows.size else 0


class Skipped:
    """A placeholder for an object that is not read."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Skipped":
        """Accepts any arguments of the object's class."""
        del args, kwargs
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignores everything."""

    def __setstate__(self, state: Any) -> None:
        """Ignores the object's content."""


def _read(archive: zipfile.ZipFile) -> Any:
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    if "data.pkl" not in names:
        raise ValueError("no data.pkl inside: not written by torch.save")
    if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
        raise ValueError("its numbers are stored with the highest byte first, which is not supported")
    with archive.open(names["data.pkl"]) as file:
        return _Unpickler(file, lambda key: archive.read(names[f"data/{key}"])).load()


class _Unpickler(pickle.Unpickler):
    """An unpickler that resolves storages and a few names, and refuses all others."""

    def __init__(self, file: Any, read_storage: Any) -> None:
        super().__init__(file)
        self._read_storage = read_storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "PIL" or module.startswith("PIL."):
            return Skipped
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("_codecs", "encode"): _encode_latin1,
            **{("torch", storage): dtype for storage, dtype in _STORAGES.items()},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}; only tensors ({', '.join(_STORAGES)}), containers, strings and numbers "
                "are read, and PIL images skipped"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"it refers to an object of unknown kind {kind!r}")
        return np.frombuffer(self._read_storage(key), dtype, count)


def _tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    """A view of a storage; ``strides`` in elements."""
    steps = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    inside = offset >= 0 and min((0, *strides)) >= 0 and offset + sum(steps) < len(storage)
    if 0 not in shape and not inside:
        raise ValueError(f"a tensor of shape {list(shape)} reaches beyond its storage of {len(storage)} numbers")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    byte_strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides, writeable=False)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Restores bytes, which pickles of protocol 2 write as latin1 text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}; bytes are written as latin1")
    return text.encode("latin1")
