"""Digests of arrays, which show whether the weights that were read are those that were written.

    digest = "dtype[shape]:" + hex of  sum over words i of mix(word[i] XOR odd * i)  modulo 2^32

The words are the array's elements as unsigned integers, in C order. ``mix`` is a bijection of 32-bit integers (the
finaliser of MurmurHash3, a public-domain hash), so changing one word always changes the digest, whichever bits
change, and damage to several words goes unnoticed with probability 2^-32. The sum does not depend on the order of its
terms, so an array on one or several devices is digested where it is, by a program that reads each device's part once,
and only the sum is copied to the host. The digest does not protect against deliberate changes.
"""

import concurrent.futures
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.checkpoints.components import raise_problems
from helios_jax.parallel.host_memory import compute_each
from helios_jax.typing import AnyArray

_ODD = np.uint32(0x9E3779B1)
"""2^32 over the golden ratio, odd: spreads the positions of words over all bits."""

_PIECE_WORDS = 2**18
"""Words that NumPy hashes at a time: few enough that temporaries stay in the cache."""


def digest(array: AnyArray | np.generic | float) -> str:
    """The digest of an array.

    Args:
        array: A number, or an array of NumPy or JAX with any shape, sharding, memory kind and dtype, including PRNG
            keys. If it is sharded over several processes, all of them must call this function.

    Returns:
        Such as "bfloat16[40,5120]:09af3c51". Equal for arrays of NumPy and JAX with the same content.
    """
    return digests_of({"": array})[""]


def digests_of(arrays: Mapping[str, AnyArray | np.generic | float]) -> dict[str, str]:
    """The digest of every array, by name. All are dispatched to the devices before the first result is awaited."""
    data = {
        name: jax.random.key_data(array)
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        else array
        for name, array in arrays.items()
    }
    on_device: dict[str, Any] = {name: array for name, array in data.items() if _on_accelerators(array)}
    on_host = {name: np.asarray(array) for name, array in data.items() if name not in on_device}
    pending: dict[str, Any] = compute_each(_hash_on_device, on_device)
    pending |= {name: _hash_on_host(array) for name, array in on_host.items()}
    return {name: _text(on_device.get(name, on_host.get(name)), int(pending[name])) for name in arrays}


def check_digests(
    source: str | pathlib.Path, expected: Mapping[str, str], arrays: Mapping[str, AnyArray | np.generic | float]
) -> None:
    """Compares arrays with the digests that were recorded when they were written.

    Args:
        source: Where the arrays come from, for the error.
        expected: The recorded digests; names that are missing from ``arrays`` are ignored.
        arrays: The arrays that were read. Arrays without a recorded digest are not checked.

    Raises:
        ValueError: An array differs from what was written (all listed).
    """
    known = {name: array for name, array in arrays.items() if name in expected}
    damaged = [
        f"{name} (written {expected[name]}, read {found})"
        for name, found in digests_of(known).items()
        if found != expected[name]
    ]
    raise_problems(f"{source} is damaged: what was read is not what was written; copy it again:", {"changed": damaged})


def write_digests(file: pathlib.Path, digests: Mapping[str, str]) -> None:
    """Writes digests as a JSON object, one array per line."""
    file.write_text(json.dumps(dict(digests), indent=2) + "\n")


def read_digests(file: pathlib.Path, names: Iterable[str] = ()) -> dict[str, str]:
    """The digests in a file; empty if the file does not exist, as in folders of earlier versions.

    Args:
        file: The file.
        names: The arrays that must have a digest if the file exists.

    Raises:
        ValueError: The file is not what ``write_digests`` wrote.
    """
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is not readable JSON ({error}); copy it again") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError(f"{file} is damaged: a digest for every array is expected; copy it again")
    if missing := sorted(set(names) - content.keys()):
        others = f" and {len(missing) - 1} others" if missing[1:] else ""
        raise ValueError(f"{file} is damaged: the digest of {missing[0]}{others} is missing; copy it again")
    return content


def _mix(x: Any) -> Any:
    # x is a uint32 of NumPy or JAX; both wrap around on overflow.
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _text(array: Any, value: int) -> str:
    return f"{np.dtype(array.dtype).name}[{','.join(map(str, array.shape))}]:{value:08x}"


def _hash_on_host(array: np.ndarray) -> int:
    flat = np.ascontiguousarray(array).reshape(-1)
    # A 64-bit element is two words.
    words = flat.view(f"u{min(array.dtype.itemsize, 4)}")

    def piece(start: int) -> int:
        part = words[start : start + _PIECE_WORDS].astype(np.uint32)
        position = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
        return int(_mix(part ^ (position * _ODD)).sum(dtype=np.uint64))

    starts = range(0, words.size, _PIECE_WORDS)
    if len(starts) < 8:
        return sum(map(piece, starts)) % 2**32
    with concurrent.futures.ThreadPoolExecutor() as threads:  # NumPy releases the GIL.
        return sum(threads.map(piece, starts)) % 2**32


def _on_accelerators(array: Any) -> bool:
    """Whether the digest is computed on the array's device. For arrays in host memory that would compile a program."""
    if not isinstance(array, jax.Array):
        return False
    one_cpu = len(array.sharding.device_set) == 1 and next(iter(array.sharding.device_set)).platform == "cpu"
    return not one_cpu


@jax.jit
def _hash_on_device(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = min(array.dtype.itemsize, 4) * 8
    words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)
    # The position of every word, computed inside the fused reduction: no array of indices is materialised.
    position, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mix(words ^ (position * _ODD)), dtype=jnp.uint32)
