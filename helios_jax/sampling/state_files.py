"""Files of states: one file, without pickle, that is checked as a whole.

    helios_jax stream state 1 <SHA-256 of the rest>
    <JSON object: everything but the arrays>
    <the arrays, as safetensors>

Arrays that NumPy does not have, such as bfloat16, are stored as integers of the same bits, and the JSON object names
their dtype. The file is written under another name, synchronised and renamed, so that a crash leaves the old state or
the new one.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from helios_jax.safe_files import replace_bytes
from helios_jax.sampling.state_paths import STATE_START, check_state_path
from helios_jax.typing import Path
from helios_jax.user_input import existing_file
from helios_jax.version import __version__

_VERSION = b"1"


def write_state_file(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state, whole or not at all; creates the folder, and replaces a state that is there already.

    Raises:
        FileExistsError: The file exists and is not a state.
        OSError: It cannot be written.
    """
    from safetensors.numpy import save

    path = check_state_path(path)
    dtypes = {name: array.dtype.name for name, array in arrays.items()}
    # JSON has as many digits of a float as it needs, so numbers come back as they were.
    text = json.dumps({"helios_jax": __version__, **header, "dtypes": dtypes}).encode()
    content = b"%s\n%s" % (text, save({name: _plain(array) for name, array in arrays.items()}))
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(content).hexdigest().encode()
    replace_bytes(path, b"%s%s %s\n%s" % (STATE_START, _VERSION, digest, content))


def read_state_file[T](path: Path, build: Callable[[dict[str, Any], dict[str, np.ndarray]], T]) -> T:
    """Reads a file that ``write_state_file`` wrote.

    Args:
        path: The file.
        build: Gives the result from the header and the arrays; any error in it means that the file cannot be used.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is not such a file, or damaged.
    """
    from safetensors.numpy import load

    path = existing_file(path, "state")
    with open(path, "rb") as file:
        start = file.read(len(STATE_START))
        rest = file.read() if start == STATE_START else b""
    if start != STATE_START:
        raise ValueError(f"{path} is not a stream state that helios_jax wrote")
    line, _, content = rest.partition(b"\n")
    version, _, digest = line.partition(b" ")
    if version != _VERSION and version.isdigit():
        raise ValueError(f"{path} is a stream state of version {version.decode()}; this helios_jax reads version 1")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged or incomplete: its content does not match its digest; copy it again")
    text, _, tensors = content.partition(b"\n")
    try:
        header, stored = json.loads(text), load(tensors)
        return build(header, {name: stored[name].view(np.dtype(dtype)) for name, dtype in header["dtypes"].items()})
    except Exception as error:  # whatever a file that was edited by hand leads to
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} does not describe a stream ({reason:.200})") from error


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in a dtype of NumPy: safetensors returns no others."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array
