"""The three networks of a checkpoint (configuration, module and key table), and helpers of both layouts."""

import contextlib
import dataclasses
import functools
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax import config as configs
from helios_jax.checkpoints import key_tables
from helios_jax.checkpoints.key_tables import ParamPath
from helios_jax.checkpoints.shipped import named_folder
from helios_jax.config.fields import Json, SettingError, shown
from helios_jax.models.network import ConfiguredModule
from helios_jax.typing import Array, DType, Path
from helios_jax.user_input import user_path

_LISTED = 12
"""Names spelled out in an error before the rest is only counted."""

_MAX_JSON_BYTES = 2**25
"""Largest file of settings or index of weights. (The index of the 14B transformer has 0.1 MB.)"""

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

    def read_config(self, folder: FilePath) -> Any:
        """The configuration in ``config.json`` of the component's own folder."""
        return read_settings_file(folder / "config.json", self.config.from_diffusers)

    def abstract(self, config: Any, dtype: DType) -> ConfiguredModule:
        """The network with shapes and dtypes but no arrays."""
        # One form of the dtype: it is part of the static structure, which decides whether networks share programs.
        return nnx.merge(*_abstract(*self.module, config, jnp.dtype(dtype)))


@functools.lru_cache(maxsize=8)
def _abstract(module: str, name: str, config: Any, dtype: np.dtype) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and shapes of a network. Cached, because checks, memory estimates and loading all use them."""
    network = getattr(importlib.import_module(module), name)
    return nnx.split(nnx.eval_shape(lambda: network(config, dtype=dtype, rngs=nnx.Rngs(0))))


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


def floating_dtype(dtype: DType, name: str) -> np.dtype:
    """``dtype`` as NumPy's. Raises ValueError unless it is one of floating-point numbers."""
    # NumPy takes None for float64.
    with contextlib.suppress(TypeError):
        if dtype is not None and jnp.issubdtype(found := jnp.dtype(dtype), jnp.floating):
            return found
    raise ValueError(f"{name}={dtype!r} is not a floating-point dtype such as 'bfloat16' or 'float32'")


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
    path = named_folder(folder, "folder")
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}")
    inner = path / component
    return inner if inner.is_dir() else path


def new_component_folder(folder: Path, component: str) -> FilePath:
    """Makes ``folder/component``. Raises FileExistsError when it holds weights in either layout."""
    target = user_path(folder, "folder") / component
    if (target / "weights").exists() or any(target.glob("*.safetensors*")):
        raise FileExistsError(f"{target} already holds weights; choose another folder or remove them first")
    target.mkdir(parents=True, exist_ok=True)
    return target


def read_json(file: FilePath) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else, or what the standard forbids: NaN, infinities, duplicate keys,
            encodings other than UTF-8.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: is {file.parent} (part of) a complete checkpoint?")
    if not file.is_file():  # Opening a pipe would wait for its writer.
        raise ValueError(f"{file} must be a JSON file, and it is a folder or a device")
    if (size := file.stat().st_size) > _MAX_JSON_BYTES:
        raise ValueError(f"{file} has {size:,} bytes; a JSON file of settings has at most {_MAX_JSON_BYTES:,}")
    try:
        content = json.loads(file.read_bytes().decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply to be a file of settings") from error
    except ValueError as error:  # json.JSONDecodeError is one
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {shown(content)}; expected a JSON object, {{...}}")
    return content


def _is_finite(value: Any) -> bool:
    """Whether a value of JSON holds finite numbers only; objects in it have been checked before."""
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {shown(key)} is given twice")
        if not _is_finite(value):
            raise ValueError(f"{shown(key)}: {shown(value)} is not finite")
        content[key] = value
    return content


def read_settings_file[C](file: FilePath, read: Callable[[Json], C]) -> C:
    """``read(content)`` of a JSON file, with the file's name in front of its errors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or a setting cannot be used.
    """
    content = read_json(file)
    try:
        return read(content)
    except SettingError as error:
        raise ValueError(f"{file}: {error}") from error


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
