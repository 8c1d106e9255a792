"""Names and memory of devices for messages, and readable out-of-memory errors."""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import jax


def devices_of(tree: Any) -> list[jax.Device]:
    """The devices that hold the arrays of a tree, in the order of their ids."""
    found = {device for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) for device in leaf.devices()}
    return sorted(found, key=lambda device: device.id)


def describe_devices(devices: Sequence[jax.Device] | None = None) -> str:
    """One line, such as "4 x NVIDIA H100 80GB HBM3, 79 GiB each" or "CPU"; ``None``: all devices of this process."""
    devices = jax.local_devices() if devices is None else devices
    if not devices:
        return "no device"
    kind = "CPU" if devices[0].platform == "cpu" else devices[0].device_kind
    count = f"{len(devices)} x " if len(devices) > 1 else ""
    limit = memory_limit(devices[0])
    return f"{count}{kind}" + (f", {limit / 2**30:.0f} GiB{' each' if count else ''}" if limit else "")


def memory_limit(device: jax.Device) -> int | None:
    """Bytes that JAX may allocate on a device; ``None`` where it sets no limit, as on CPUs."""
    return (device.memory_stats() or {}).get("bytes_limit")


def bytes_in_words(size: int) -> str:
    """A number of bytes with four digits: "28.62 GB", "253.8 MB", "12 B"."""
    power = min(3, max(0, (len(str(size)) - 1) // 3))
    return f"{size / 1000**power:.4g} {('B', 'kB', 'MB', 'GB')[power]}"


@contextlib.contextmanager
def explains_memory_errors(task: str, advice: str) -> Generator[None]:
    """Turns XLA's out-of-memory errors, which list pages of allocations, into a MemoryError with advice.

    Args:
        task: What was being done, such as "sampling 384x640".
        advice: How to use less memory.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if str(error).startswith("out of memory while"):  # already explained
            raise
        raise MemoryError(f"out of memory while {task} on {describe_devices()}: {advice}") from error
