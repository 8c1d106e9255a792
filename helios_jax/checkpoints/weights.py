"""The weights of one network in either layout, which is recognised by the files in the folder."""

from pathlib import Path as FilePath
from typing import Literal, get_args

import jax
import numpy as np
from flax import nnx

from helios_jax.checkpoints.components import component_folder
from helios_jax.checkpoints.diffusers import check_diffusers, load_diffusers, save_diffusers
from helios_jax.checkpoints.orbax import has_orbax_weights, load_orbax, save_orbax
from helios_jax.models.network import ConfiguredModule
from helios_jax.typing import DType, Path

Layout = Literal["diffusers", "orbax"]

MAX_WEIGHT = 1e6
"""Largest accepted magnitude of a weight: far above what training reaches, and far below the point where products
overflow in bfloat16 and float32."""

_MAX_CHECKED_BYTES = 2**30
"""Largest network whose values are checked."""


def layout_of(folder: FilePath) -> Layout:
    """The layout of a component's own folder."""
    return "orbax" if has_orbax_weights(folder) else "diffusers"


def load_weights(
    folder: Path, component: str, *, dtype: DType | None = None, mesh: jax.sharding.Mesh | None = None
) -> ConfiguredModule:
    """Loads one network in either layout; see ``load_diffusers`` for arguments and errors.

    The weights of small networks, including the VAE, are checked: one NaN in a decoder gives black frames. Checking
    large networks would take too long; their bad values appear in the first chunk of latents, which sampling checks.
    """
    own = component_folder(folder, component)
    load = load_orbax if layout_of(own) == "orbax" else load_diffusers
    network = load(folder, component, dtype=dtype, mesh=mesh)
    check_values(network, own)
    return network


def check_values(network: ConfiguredModule, source: FilePath) -> None:
    """Raises ValueError if a network below 1 GB has weights that are not finite or are implausibly large."""
    parameters = nnx.to_flat_state(nnx.state(network, nnx.Param))
    if sum(variable[...].nbytes for _, variable in parameters) > _MAX_CHECKED_BYTES:
        return
    for path, variable in parameters:
        for shard in variable[...].addressable_shards:
            # NumPy on the host, because a device program would take seconds to compile.
            if shard.replica_id == 0 and not _largest(np.asarray(shard.data)) <= MAX_WEIGHT:
                raise ValueError(
                    f"{source}: the parameter {'.'.join(map(str, path))} holds NaN, infinity or values beyond "
                    f"{MAX_WEIGHT:g}, in its file or as {variable[...].dtype}; fetch its weights again"
                )


def _largest(array: np.ndarray) -> float:
    """The largest magnitude, where NaN is largest: without the sign bit, floats sort in the order of their bits."""
    bits = array.view(f"u{array.itemsize}") & (2 ** (8 * array.itemsize - 1) - 1)
    return float(bits.max(initial=0).view(array.dtype))


def check_weights(folder: Path, component: str) -> None:
    """Raises the errors of ``load_weights`` about configuration, names and shapes; reads no weights."""
    own = component_folder(folder, component)
    if layout_of(own) == "diffusers":
        check_diffusers(own, component)


def save_weights(module: ConfiguredModule, folder: Path, component: str, layout: Layout = "diffusers") -> None:
    """Writes one network as ``folder/component``.

    Raises:
        ValueError: Unknown layout.
        FileExistsError: The component's folder already holds weights.
    """
    check_layout(layout)
    save = save_orbax if layout == "orbax" else save_diffusers
    save(module, folder, component)


def check_layout(layout: str) -> None:
    """Raises ValueError naming the known layouts."""
    if layout not in get_args(Layout):
        raise ValueError(f"unknown layout {layout!r}; expected one of {', '.join(get_args(Layout))}")
