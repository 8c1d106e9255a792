"""Digests of arrays, computed where the arrays are: on any mesh the same, and at the speed of one read of the memory.

For the words w_i of an array (its bits as unsigned integers, i in row-major order) and seeds s = 1, 2,

    d_s = sum_i m(w_i xor m(i + s c)) mod 2^32          c = 0x9E3779B9                                      (1)

where m is the finaliser of MurmurHash3, a bijection of 32 bits that spreads every bit over all. Sums of integers do not
depend on their order, hence not on the mesh. A change of one word always changes d_s; other changes remain undetected
with a probability of 2^-64. A digest guards against damage, not against forgery.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from helios_jax.typing import Array

SEEDS = (1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What was found in an array.

    Attributes:
        digest: Its digest, 16 hexadecimal digits.
        finite: Whether all of its numbers are finite.
    """

    digest: str
    finite: bool


def read_arrays(tree: Any) -> dict[str, Reading]:
    """Reads every array of a pytree, on its devices; collective if there are several processes.

    Args:
        tree: Arrays, sharded in any way.

    Returns:
        The reading of each array by its path, such as "trainable/out/kernel".
    """
    # All are dispatched before the first is fetched.
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _reader(_mesh_of(array))(array)
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {
        path: Reading(digest="".join(f"{int(word):08x}" for word in words), finite=bool(finite))
        for path, (words, finite) in jax.device_get(found).items()
    }


def digests(readings: dict[str, Reading]) -> dict[str, str]:
    """The digest of each array by path."""
    return {path: reading.digest for path, reading in readings.items()}


def not_finite(readings: dict[str, Reading]) -> str:
    """Names the arrays that are not finite: "a/kernel and 2 others"; empty if all are finite."""
    paths = [path for path, reading in readings.items() if not reading.finite]
    return paths[0] + (f" and {len(paths) - 1} others" if len(paths) > 1 else "") if paths else ""


def _mesh_of(array: Any) -> Mesh | None:
    sharding = getattr(array, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


@functools.cache
def _reader(mesh: Mesh | None) -> Any:
    # Replicated results can be fetched by every process.
    return jax.jit(_read, out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def _read(array: Array) -> tuple[Array, Array]:
    """The words d_s of (1), and whether all numbers are finite."""
    words = _words(array)
    # Positions from one iota for each axis: a flat index would gather an array that is sharded.
    position = jnp.zeros((), jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        position = position + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
    sums = [
        jnp.sum(_mixed(words ^ _mixed(position + jnp.uint32(seed * 0x9E3779B9 % 2**32))), dtype=jnp.uint32)
        for seed in SEEDS
    ]
    finite = jnp.isfinite(array).all() if jnp.issubdtype(array.dtype, jnp.inexact) else jnp.bool(True)
    return jnp.stack(sums), finite


def _words(array: Array) -> Array:
    """The bits of an array as 32-bit words; numbers of 64 bits become two."""
    if array.dtype == jnp.bool:
        return array.astype(jnp.uint32)
    size = min(4, array.dtype.itemsize)
    return jax.lax.bitcast_convert_type(array, f"uint{8 * size}").astype(jnp.uint32)


def _mixed(x: Array) -> Array:
    """The finaliser of MurmurHash3."""
    x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
    return x ^ x >> 16
