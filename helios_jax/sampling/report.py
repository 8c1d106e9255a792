"""Describes a pipeline: the kind of model, its devices and its memory."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from helios_jax.config import PipelineConfig
from helios_jax.models.network import Network, count_in_words
from helios_jax.parallel.devices import bytes_in_words, describe_devices, devices_of
from helios_jax.parallel.host_memory import bytes_by_device, bytes_on_host


def kind_of(config: PipelineConfig) -> str:
    """The kind of published model: Base, Mid or Distilled."""
    if config.is_distilled:
        return "Distilled"
    return "Mid" if config.is_pyramid else "Base"


def parameters_of(network: Network[Any]) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(network.params))


def device_report(config: PipelineConfig, networks: Mapping[str, Network[Any]]) -> str:
    """A line for the devices and one for each network: parameters, compute dtype and bytes on each device.

    Args:
        config: What kind of checkpoint it is.
        networks: The networks by name.
    """
    devices = devices_of([network.params for network in networks.values()])
    lines = [f"Helios {kind_of(config)} on {describe_devices(devices)}"]
    total = 0
    for name, network in networks.items():
        size, parked = max(bytes_by_device(network).values(), default=0), bytes_on_host(network)
        total += size
        lines.append(
            f"  {name}: {count_in_words(parameters_of(network))} parameters, {jnp.dtype(network.dtype).name}, "
            + (f"{bytes_in_words(parked)} in host memory" if parked else bytes_in_words(size))
        )
    each = " on each device" if len(devices) > 1 else ""
    lines.append(f"  together: {bytes_in_words(total)}{each}")
    stats = (devices[0].memory_stats() or {}) if devices else {}
    if "bytes_in_use" in stats and "bytes_limit" in stats:
        in_use, limit = bytes_in_words(stats["bytes_in_use"]), bytes_in_words(stats["bytes_limit"])
        lines.append(f"  memory of {devices[0].device_kind}: {in_use} of {limit} in use")
    return "\n".join(lines)
