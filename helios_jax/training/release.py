"""Writes the networks of a product: trained ones one tensor at a time, the others by copying their files.

A network in training fills the device. The released network is therefore never held as a whole, neither on the device
nor on the host: each published tensor is computed from its parameter and adapter, cast, checked and fetched when its
file is written.

Where several processes share the arrays, all of them call these functions: each tensor is gathered on the devices and
fetched by the first process, which alone reads and writes files.
"""

import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from helios_jax.checkpoints.components import find_component, new_component_folder, write_json
from helios_jax.checkpoints.diffusers import StoredTensors, save_diffusers
from helios_jax.checkpoints.tensor_files import TensorFolder, write_tensors
from helios_jax.checkpoints.weights import layout_of, load_weights
from helios_jax.models.network import ConfiguredModule
from helios_jax.models.tokenization import Tokenizer
from helios_jax.training.released import Released
from helios_jax.typing import DType

SHARD_BYTES = 10 * 10**9
"""Largest size of a weight file, as published."""


def save_released(
    name: str,
    network: ConfiguredModule,
    folder: pathlib.Path,
    dtype: DType,
    config: Any = None,
    source: StoredTensors | None = None,
) -> None:
    """Writes a trained network as ``folder/name``, with adapters merged and the dtypes of published checkpoints.

    Args:
        name: Its name among the networks: "transformer", "vae" or "text_encoder".
        network: The network, with arrays on devices or on the host; it is not changed.
        folder: The checkpoint.
        dtype: Precision to release it in; parameters that are published only in fp32 stay fp32.
        config: Configuration with the same sizes to write to ``config.json``; ``None``: that of ``network``.
        source: The files that frozen weights are read from again; see ``Released``.

    Raises:
        FloatingPointError: A value is not finite.
        ValueError: The source holds other weights than the network.
        FileExistsError: The folder already holds weights of this network.
    """
    config = config or network.config
    released = Released(name, network, dtype, config, source)

    def read(published: str) -> np.ndarray:
        return released.entries[published].layout.to_published(np.asarray(released.tensor(published)))

    if jax.process_index() > 0:
        for published in released.entries:  # in the order in which the first process writes
            released.tensor(published)
        return
    target = new_component_folder(folder, name)
    tensors = ((published, entry.shape, released.dtypes[entry.path]) for published, entry in released.entries.items())
    write_tensors(target, find_component(name).weights, tensors, read, SHARD_BYTES)
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
