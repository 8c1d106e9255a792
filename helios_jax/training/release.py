"""Writes the networks of a product: trained ones one tensor at a time, the others by copying their files.

A network in training fills the device. The released network is therefore never held as a whole, neither on the device
nor on the host: each published tensor is computed from its parameter and adapter, cast, checked and fetched when its
file is written.

Where several processes share the arrays, all of them call these functions: each tensor is gathered on the devices and
fetched by the first process, which alone reads and writes files.
"""

import functools
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.checkpoints.components import find_component, new_component_folder, write_json
from helios_jax.checkpoints.diffusers import save_diffusers
from helios_jax.checkpoints.key_tables import published_entries
from helios_jax.checkpoints.tensor_files import TensorFolder, write_tensors
from helios_jax.checkpoints.weights import layout_of, load_weights
from helios_jax.models.lora import adapted_layers, merged_kernel, strip_lora
from helios_jax.models.network import ConfiguredModule
from helios_jax.models.tokenization import Tokenizer
from helios_jax.parallel.mesh import readable
from helios_jax.typing import AnyArray, Array, Bool, DType, Float

SHARD_BYTES = 10 * 10**9
"""Largest size of a weight file, as published."""


def save_released(name: str, network: ConfiguredModule, folder: pathlib.Path, dtype: DType, config: Any = None) -> None:
    """Writes a trained network as ``folder/name``, with adapters merged and the dtypes of published checkpoints.

    Args:
        name: Its name among the networks: "transformer", "vae" or "text_encoder".
        network: The network, with arrays on devices or on the host; it is not changed.
        folder: The checkpoint.
        dtype: Precision to release it in; parameters that are published only in fp32 stay fp32.
        config: Configuration with the same sizes to write to ``config.json``; ``None``: that of ``network``.

    Raises:
        FloatingPointError: A value is not finite.
        FileExistsError: The folder already holds weights of this network.
    """
    component, config = find_component(name), config or network.config
    abstract = component.abstract(config, dtype)
    entries = published_entries(abstract, component.keys)
    dtypes = {path: np.dtype(variable.dtype) for path, variable in nnx.to_flat_state(nnx.state(abstract, nnx.Param))}
    arrays = dict(nnx.to_flat_state(nnx.state(strip_lora(network), nnx.Param)))
    layers = adapted_layers(network)

    def part_of(published: str) -> jax.Array:
        """A tensor in its final precision, gathered on the devices."""
        entry = entries[published]
        *owner, parameter = entry.path
        layer = layers.get("/".join(map(str, owner)))
        if layer is None or parameter != "kernel":
            part = arrays[entry.path][...]
            part = part if entry.layer is None else part[entry.layer]
        else:
            part = merged_kernel(layer, entry.layer)
        part = part if entry.columns is None else part[..., entry.columns]
        part, finite = readable(_cast(part, dtypes[entry.path]))
        if not finite:
            raise FloatingPointError(f"{name}: {published} is not finite in {dtypes[entry.path]}; it is not written")
        return part

    def read(published: str) -> np.ndarray:
        return entries[published].layout.to_published(np.asarray(part_of(published)))

    if jax.process_index() > 0:
        for published in entries:  # in the order in which the first process writes
            part_of(published)
        return
    target = new_component_folder(folder, name)
    tensors = ((published, entry.shape, dtypes[entry.path]) for published, entry in entries.items())
    write_tensors(target, component.weights, tensors, read, SHARD_BYTES)
    write_json(target / "config.json", config.to_diffusers())


def copy_part(checkpoint: pathlib.Path, name: str, folder: pathlib.Path) -> None:
    """Copies a network that was not trained to ``folder/name``, in its stored precision and without a device.

    Files in the Orbax layout are converted, so that a product has one layout; they are read into host memory.

    Raises:
        FileNotFoundError: The network or its weights are missing.
        ValueError: A file of weights is damaged.
        FileExistsError: The folder already holds weights of this network.
    """
    if jax.process_index() > 0:
        return
    source = _part_folder(checkpoint, name)
    if layout_of(source) == "orbax":
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            save_diffusers(load_weights(source, name), folder, name)
        return
    with TensorFolder(source) as weights:  # opening the files checks that they are complete
        files = {info.file for info in weights.tensors.values()}
    target = new_component_folder(folder, name)
    for file in [*sorted(files), *source.glob("*.safetensors.index.json"), source / "config.json"]:
        shutil.copyfile(file, target / file.name)


def copy_tokenizer(checkpoint: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the tokenizer of a checkpoint.

    Raises:
        FileNotFoundError: There is none.
    """
    if jax.process_index() > 0:
        return
    source = checkpoint / "tokenizer"
    if not (source / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer.json in {source}: it is needed next to the text encoder")
    target = folder / "tokenizer"
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def check_copied(checkpoint: pathlib.Path, names: Iterable[str]) -> dict[str, Any]:
    """Checks that these networks and the tokenizer can be copied; of weights only the files' headers are read.

    Returns:
        The configurations of the networks, by name.

    Raises:
        FileNotFoundError: Something is missing.
        ValueError: Settings, a file of weights or the tokenizer are damaged.
    """
    configs = {}
    for name in names:
        source = _part_folder(checkpoint, name)
        configs[name] = find_component(name).read_config(source)
        if layout_of(source) == "diffusers":
            with TensorFolder(source):
                pass
    Tokenizer.from_folder(checkpoint)
    return configs


def _part_folder(checkpoint: pathlib.Path, name: str) -> pathlib.Path:
    folder = checkpoint / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{checkpoint} has no {name}/, which the product needs because it is not trained")
    return folder


@functools.partial(jax.jit, static_argnums=1)
def _cast(part: Float[AnyArray, "*shape"], dtype: DType) -> tuple[Float[Array, "*shape"], Bool[Array, ""]]:
    part = jnp.asarray(part).astype(dtype)
    return part, jnp.isfinite(part).all()
