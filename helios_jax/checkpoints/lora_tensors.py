"""The tensors of one LoRA file, in every dtype that LoRA files are stored in."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

_FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_INTEGERS = ("I64", "I32", "I16", "I8", "U8")
"""Some trainers write alpha as an integer."""


class LoraTensors:
    """Read access to an open LoRA file.

    Attributes:
        path: The file.
        names: Names of its tensors.
        metadata: The text entries of its header.
    """

    def __init__(self, path: pathlib.Path, handle: Any) -> None:
        self.path = path
        self.names: list[str] = list(handle.keys())
        self.metadata: Mapping[str, str] = handle.metadata() or {}
        self._handle = handle

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._handle.get_slice(name).get_shape())

    def read(self, name: str, *, integers: bool = False) -> np.ndarray:
        """Reads a tensor; integer dtypes are refused unless they are allowed.

        Raises:
            ValueError: It has a dtype that such tensors do not have, or values that are not finite.
        """
        dtype = self._handle.get_slice(name).get_dtype()
        if dtype not in _FLOATS and not (integers and dtype in _INTEGERS):
            raise ValueError(f"{self.path}: tensor {name!r} has dtype {dtype}; one of {', '.join(_FLOATS)} is needed")
        # safetensors cannot return eight-bit floats as NumPy arrays.
        tensor = self._read_bytes(name, _FLOATS[dtype]) if dtype.startswith("F8") else self._handle.get_tensor(name)
        wrong = tensor.size - np.count_nonzero(np.isfinite(tensor.astype(np.float32)))
        if wrong:
            raise ValueError(f"{self.path}: {wrong:,} of {tensor.size:,} values of tensor {name!r} are not finite")
        return tensor

    def _read_bytes(self, name: str, dtype: np.dtype) -> np.ndarray:
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            start, end = json.loads(file.read(length))[name]["data_offsets"]
            file.seek(8 + length + start)
            content = file.read(end - start)
        return np.frombuffer(content, dtype).reshape(self.shape(name))


@contextlib.contextmanager
def open_lora(path: pathlib.Path) -> Iterator[LoraTensors]:
    """Opens a LoRA file.

    Raises:
        ValueError: It is not a complete safetensors file, or holds no tensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(path, framework="numpy")
    except SafetensorError as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size:,} bytes) is not a complete safetensors file ({error}); is it a LoRA, and copied whole?"
        ) from error
    with opened as handle:
        tensors = LoraTensors(path, handle)
        if not tensors.names:
            raise ValueError(f"{path} holds no tensors: it is not a LoRA")
        yield tensors
