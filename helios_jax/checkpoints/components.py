"""The three networks of a checkpoint (configuration, module and key table), and helpers of both layouts."""

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import nnx

from helios_jax import config as configs
from helios_jax.checkpoints import key_tables
from helios_jax.checkpoints.key_tables import ParamPath
from helios_jax.models.network import ConfiguredModule
from helios_jax.typing import Array, DType, Path

_LISTED = 12
"""Names spelled out in an error before the rest is only counted."""

ComponentName = Literal["transformer", "vae", "text_encoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """Everything needed to build and to convert one network.

    Attributes:
        config: Its configuration class (``from_diffusers``, ``to_diffusers``).
        module: Module and class name of the network.
        keys: Its key table.
        weights: Stem of its published weight files.
    """

    config: type
    module: tuple[str, str]
    keys: key_tables.KeyTable
    weights: str

    def abstract(self, config: Any, dtype: DType) -> ConfiguredModule:
        """The network with shapes and dtypes but no arrays."""
        module, name = self.module
        network = getattr(importlib.import_module(module), name)
        # One form of the dtype: it is part of the static structure, which decides whether networks share programs.
        return nnx.eval_shape(lambda: network(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))


COMPONENTS: dict[str, Component] = {
    "transformer": Component(
        config=configs.TransformerConfig,
        module=("helios_jax.models.transformer", "HeliosTransformer"),
        keys=key_tables.TRANSFORMER,
        weights="diffusion_pytorch_model",
    ),
    "vae": Component(
        config=configs.VaeConfig,
        module=("helios_jax.models.vae", "WanVae"),
        keys=key_tables.VAE,
        weights="diffusion_pytorch_model",
    ),
    "text_encoder": Component(
        config=configs.TextEncoderConfig,
        module=("helios_jax.models.text_encoder", "Umt5Encoder"),
        keys=key_tables.TEXT_ENCODER,
        weights="model",
    ),
}


def find_component(name: str) -> Component:
    """Looks a component up. Raises ValueError naming the known ones."""
    if name not in COMPONENTS:
        raise ValueError(f"unknown component {name!r}; expected one of {', '.join(get_args(ComponentName))}")
    return COMPONENTS[name]


def with_parameters(abstract: ConfiguredModule, arrays: Mapping[ParamPath, Array]) -> ConfiguredModule:
    """The network ``abstract`` with every parameter filled from ``arrays``."""
    graph, state = nnx.split(abstract)
    filled = [(path, variable.replace(arrays[path])) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def component_folder(folder: Path, component: str) -> FilePath:
    """Returns the component's own folder, given that folder or the checkpoint that contains it."""
    path = FilePath(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}")
    inner = path / component
    return inner if inner.is_dir() else path


def new_component_folder(folder: Path, component: str) -> FilePath:
    """Makes ``folder/component``. Raises FileExistsError when it holds weights in either layout."""
    target = FilePath(folder) / component
    if (target / "weights").exists() or any(target.glob("*.safetensors*")):
        raise FileExistsError(f"{target} already holds weights; choose another folder or remove them first")
    target.mkdir(parents=True, exist_ok=True)
    return target


def read_json(file: FilePath) -> dict[str, Any]:
    """Reads a JSON object. Raises FileNotFoundError or ValueError naming the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: is {file.parent} (part of) a complete checkpoint?")
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def write_json(file: FilePath, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, indented."""
    file.write_text(json.dumps(content, indent=2) + "\n")


def check_tensors(
    summary: str, needed: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], *, source: str
) -> None:
    """Raises ValueError unless the names and shapes ``given`` are exactly the ``needed`` ones.

    Args:
        summary: First line of the error.
        needed: Name -> shape that the configuration requires.
        given: Name -> shape that is stored.
        source: Where ``needed`` comes from, for the error.
    """
    problems = {
        "missing": sorted(needed.keys() - given.keys()),
        "unexpected": sorted(given.keys() - needed.keys()),
        "misshapen": [
            f"{name} is {given[name]}, {source} asks for {needed[name]}"
            for name in sorted(needed.keys() & given.keys())
            if given[name] != needed[name]
        ],
    }
    raise_problems(summary, problems)


def raise_problems(summary: str, problems: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError with one line per kind of problem, unless all lists are empty."""
    if not any(problems.values()):
        return
    lines = [
        f"  {len(names)} {kind}: " + ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        for kind, names in problems.items()
        if names
    ]
    raise ValueError("\n".join([summary, *lines]))
