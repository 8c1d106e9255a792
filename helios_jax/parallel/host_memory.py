"""Arrays in pinned host memory: copies there and back, their bytes, and the limits of that memory.

A GPU copies to and from pinned memory at the full rate of its bus, about 54 GB/s on an H100, while kernels run. It
cannot be swapped out, and XLA takes it from a pool of 64 GiB unless the environment variable
``XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB`` is set before JAX starts. CPU devices have the same kinds of memory, so programs
that park arrays run there too, with copies from one part of the host's memory to another.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax

from helios_jax.parallel.devices import bytes_in_words, devices_of

HOST = "pinned_host"
"""Memory kind of parked arrays."""

LIMIT_VARIABLE = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"
"""Environment variable with the size of XLA's pool of pinned memory, in GiB."""

_DEFAULT_LIMIT = 64

MOST_COPIES = 4 * 2**30
"""Bytes of parked arrays that are copied at a time where not all of them may fit, if no single array is larger."""


def is_on_host(tree: Any) -> bool:
    """Whether any array of a tree is in pinned host memory."""
    return any(isinstance(leaf, jax.Array) and leaf.sharding.memory_kind == HOST for leaf in jax.tree.leaves(tree))


def on_host[T](tree: T) -> T:
    """The tree with every array in pinned host memory, sharded as before; the given arrays stay valid.

    Raises:
        ValueError: The devices have no pinned host memory.
    """
    for device in devices_of(tree):
        if HOST not in {memory.kind for memory in device.addressable_memories()}:
            raise ValueError(f"{device.device_kind} has no memory of the kind {HOST!r}, so nothing can be parked")
    return _moved(tree, HOST)


def on_device[T](tree: T) -> T:
    """The tree with every array in device memory, sharded as before.

    Arrays that are there already are not copied, but committed to their device: an uncommitted argument would be
    another program.
    """
    return _moved(tree, "device")


@contextlib.contextmanager
def fetched[T](tree: T) -> Generator[T]:
    """Gives the tree in device memory; copies made for this are deleted at the end.

    Programs that were dispatched inside the block may still be running then: the runtime frees the memory of a deleted
    array when its last program ends.
    """
    if not is_on_host(tree):
        yield tree
        return
    arrays = on_device(tree)
    try:
        yield arrays
    finally:
        both = zip(jax.tree.leaves(tree), jax.tree.leaves(arrays), strict=True)
        delete([new for old, new in both if is_on_host(old)])


def compute_each[R](program: Callable[[jax.Array], R], arrays: Mapping[str, jax.Array]) -> dict[str, R]:
    """The results of a program for every array, by name.

    Arrays in pinned host memory are copied to their devices for it, 4 GiB at a time: there may be no room for all of
    them. Everything else is dispatched without waiting.
    """
    results, copied = {}, 0
    for name, array in arrays.items():
        if is_on_host(array):
            size = total_bytes(array)
            if copied and copied + size > MOST_COPIES:
                # Programs run in the order of their calls, so all copies before the last one have been read too.
                jax.block_until_ready(list(results.values())[-1:])
                copied = 0
            copied += size
        results[name] = program(on_device(array))
    return results


def delete(tree: Any) -> None:
    """Deletes the arrays of a tree, except those that are deleted already."""
    for leaf in jax.tree.leaves(tree):
        if not leaf.is_deleted():
            leaf.delete()


def buffers(tree: Any) -> set[tuple[jax.Device, int]]:
    """The buffers of a tree's arrays on the devices of this process; those of deleted and empty arrays are left out.

    May wait until the arrays are computed.
    """
    return {
        (shard.device, shard.data.unsafe_buffer_pointer())
        for leaf in jax.tree.leaves(tree)
        if not leaf.is_deleted() and leaf.size
        for shard in leaf.addressable_shards
    }


def bytes_by_device(tree: Any) -> dict[jax.Device, int]:
    """Bytes of a tree's arrays on each device of this process; arrays in host memory and deleted ones do not count."""
    return _bytes(tree, host=False)


def bytes_on_host(tree: Any) -> int:
    """Bytes of a tree's arrays in this process's pinned host memory; each device of a mesh has its own copy there."""
    return sum(_bytes(tree, host=True).values())


def total_bytes(tree: Any) -> int:
    """Bytes that a tree takes in this process's host memory when it is parked there."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize * len(leaf.sharding.addressable_devices)
        for leaf in jax.tree.leaves(tree)
    )


def check_host_memory(needed: int, *, held: int = 0, most_held: int = 0, what: str, devices: list[jax.Device]) -> None:
    """Checks that pinned host memory has room; programs of another process are seen only in what is available.

    Args:
        needed: Bytes that are to be parked.
        held: Bytes that this process has parked already.
        most_held: The most that it has had parked. XLA's pool keeps what is freed, so the system counts it as used.
        what: Name of the arrays, for the error.
        devices: The devices that they belong to.

    Raises:
        MemoryError: XLA's pool or the memory of the host is too small.
        ValueError: The environment variable of the pool's size is not a whole number.
    """
    parking = f"parking {what} takes {bytes_in_words(needed)} of pinned host memory"
    limit = _pool_limit({device.platform for device in devices})
    if limit is not None and held + needed > limit:
        # A tenth more than the sum, because the pool's blocks are fragmented.
        wanted = math.ceil(1.1 * (held + needed) / 2**30)
        raise MemoryError(
            f"{parking}, {bytes_in_words(held + needed)} with what is parked already, and XLA's pool of it is limited "
            f"to {bytes_in_words(limit)}: set {LIMIT_VARIABLE}={wanted} or more before the program starts"
        )
    available = _available()
    if available is not None and held + needed - max(held, most_held) > available:
        raise MemoryError(
            f"{parking}, which cannot be swapped out, and {bytes_in_words(available)} of the host's memory are "
            "available: keep it on the device, or use a host with more memory"
        )


def _pool_limit(platforms: set[str]) -> int | None:
    """Bytes of XLA's pool of pinned memory; ``None`` where there is no such pool, as for CPUs."""
    if not platforms & {"gpu", "cuda", "rocm"}:
        return None
    text = os.environ.get(LIMIT_VARIABLE, str(_DEFAULT_LIMIT))
    if not text.strip().isdigit():
        raise ValueError(f"{LIMIT_VARIABLE}={text!r} must be a whole number of GiB")
    return int(text) * 2**30


def _available() -> int | None:
    """Bytes of the host's memory that can be allocated without swapping; ``None`` where Linux does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _bytes(tree: Any, *, host: bool) -> dict[jax.Device, int]:
    found: dict[jax.Device, int] = {}
    for leaf in jax.tree.leaves(tree):
        if leaf.is_deleted() or (leaf.sharding.memory_kind == HOST) != host:
            continue
        for shard in leaf.addressable_shards:
            found[shard.device] = found.get(shard.device, 0) + shard.data.nbytes
    return found


def _moved[T](tree: T, kind: str) -> T:
    leaves, structure = jax.tree.flatten(tree)
    places = [leaf.sharding.with_memory_kind(kind) for leaf in leaves]
    if all(leaf.is_fully_addressable for leaf in leaves):
        return structure.unflatten(jax.device_put(leaves, places))
    return structure.unflatten(map(_moved_by_shard, leaves, places))


def _moved_by_shard(array: jax.Array, place: jax.sharding.Sharding) -> jax.Array:
    """Moves an array that several processes share: each process moves the shards of its own devices."""
    parts = [
        jax.device_put(shard.data, jax.sharding.SingleDeviceSharding(shard.device, memory_kind=place.memory_kind))
        for shard in array.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(array.shape, place, parts)
