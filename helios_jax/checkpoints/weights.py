"""The weights of one network in either layout, which is recognised by the files in the folder."""

from pathlib import Path as FilePath
from typing import Literal, get_args

import jax

from helios_jax.checkpoints.components import component_folder
from helios_jax.checkpoints.diffusers import check_diffusers, load_diffusers, save_diffusers
from helios_jax.checkpoints.orbax import has_orbax_weights, load_orbax, save_orbax
from helios_jax.models.network import ConfiguredModule
from helios_jax.typing import DType, Path

Layout = Literal["diffusers", "orbax"]


def layout_of(folder: FilePath) -> Layout:
    """The layout of a component's own folder."""
    return "orbax" if has_orbax_weights(folder) else "diffusers"


def load_weights(
    folder: Path, component: str, *, dtype: DType | None = None, mesh: jax.sharding.Mesh | None = None
) -> ConfiguredModule:
    """Loads one network in either layout; see ``load_diffusers`` for arguments and errors."""
    load = load_orbax if layout_of(component_folder(folder, component)) == "orbax" else load_diffusers
    return load(folder, component, dtype=dtype, mesh=mesh)


def check_weights(folder: Path, component: str) -> None:
    """Raises what ``load_weights`` would about configuration, names and shapes; reads no weights."""
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
