"""Whole checkpoints: all parts of a pipeline, in either layout."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.backend import backend
from helios_jax.checkpoints.components import write_json
from helios_jax.checkpoints.footprint import footprint
from helios_jax.checkpoints.hub import local_folder
from helios_jax.checkpoints.new_folder import check_new_folder, new_folder
from helios_jax.checkpoints.parking import parked_names
from helios_jax.checkpoints.settings import PipelineSettings, read_settings
from helios_jax.checkpoints.weights import Layout, check_layout, check_weights, load_weights, save_weights
from helios_jax.config import PipelineConfig, SamplingDefaults, SchedulerConfig, TextEncoderConfig
from helios_jax.config.defaults import FILE as DEFAULTS_FILE
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder, Tokenizer, check_tokenizer
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.models.vae import WanVae
from helios_jax.parallel.devices import devices_of
from helios_jax.parallel.host_memory import check_host_memory, delete, on_host, total_bytes
from helios_jax.typing import DType, Path

__all__ = ["PipelineParts", "PipelineSettings", "load_parts", "read_settings", "read_tokenizer", "save_parts"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PipelineParts:
    """The content of a checkpoint.

    Attributes:
        config: From ``model_index.json``.
        scheduler: From ``scheduler/scheduler_config.json``.
        transformer: The denoiser.
        vae: Pixels <-> latents.
        text_encoder: Prompts -> embeddings, with its tokenizer; ``None`` when the checkpoint has none.
        defaults: Settings that it was trained for, from ``sampling.json``.
    """

    config: PipelineConfig
    scheduler: SchedulerConfig
    transformer: Network[HeliosTransformer]
    vae: Network[WanVae]
    text_encoder: TextEncoder | None = None
    defaults: SamplingDefaults = dataclasses.field(default_factory=SamplingDefaults)


def load_parts(
    path: Path,
    *,
    dtype: DType,
    vae_dtype: DType,
    mesh: jax.sharding.Mesh | None,
    park: Sequence[str] = (),
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | None = None,
    allow_cpu: bool = False,
) -> PipelineParts:
    """Loads a checkpoint; see ``HeliosPipeline.from_pretrained`` for arguments and errors."""
    dtypes = {"transformer": compute_dtype(dtype, "dtype", mesh), "vae": compute_dtype(vae_dtype, "vae_dtype", mesh)}
    dtypes["text_encoder"] = dtypes["transformer"]
    parked = parked_names(park)
    settings = read_settings(path, revision=revision, token=token, cache_dir=cache_dir)
    sizes = footprint(settings, dtype=dtypes["transformer"], vae_dtype=dtypes["vae"], mesh=mesh, parked=parked)
    sizes.check(allow_cpu=allow_cpu)
    folder = local_folder(path, revision=revision, token=token, cache_dir=cache_dir)
    # All files are checked before the first weights are read.
    for component in settings.components:
        check_weights(folder, component)
    tokenizer = None if settings.text_encoder is None else read_tokenizer(folder, settings.text_encoder)

    def load(component: str) -> Network[Any]:
        network = Network.of(load_weights(folder, component, dtype=dtypes[component], mesh=mesh))
        if component not in parked:
            return network
        waiting = parked_network(network, component)
        delete(network)  # now, and not when the garbage collector finds the module
        return waiting

    # The text encoder comes first, so that a parked one leaves the device before the transformer needs the memory.
    return PipelineParts(
        config=settings.config,
        scheduler=settings.scheduler,
        text_encoder=None if tokenizer is None else TextEncoder.create(load("text_encoder").module, tokenizer),
        transformer=load("transformer"),
        vae=load("vae"),
        defaults=settings.defaults,
    )


def parked_network[T](network: T, name: str) -> T:
    """A network in pinned host memory; the given arrays stay valid.

    Raises:
        MemoryError: Pinned host memory has too little room.
        ValueError: The devices have no such memory.
    """
    check_host_memory(total_bytes(network), what=f"the {name.replace('_', ' ')}", devices=devices_of(network))
    return on_host(network)


def read_tokenizer(folder: FilePath, config: TextEncoderConfig) -> Tokenizer:
    """Loads the tokenizer of a checkpoint and checks it against the text encoder's configuration.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It is damaged or does not fit.
    """
    tokenizer = Tokenizer.from_folder(folder)
    try:
        check_tokenizer(tokenizer, config)
    except ValueError as error:
        raise ValueError(f"{folder / 'tokenizer' / 'tokenizer.json'}: {error}") from error
    return tokenizer


def compute_dtype(dtype: DType, name: str, mesh: jax.sharding.Mesh | None = None) -> np.dtype:
    """A compute dtype as NumPy's.

    Args:
        dtype: "bfloat16", "float32", or "auto": float32 on CPUs, which compute in it faster, and bfloat16 elsewhere.
        name: Name of the argument, for the error.
        mesh: The devices that networks run on; ``None``: the default one.

    Raises:
        ValueError: Networks do not compute in this dtype.
    """
    known = ("bfloat16", "float32")
    if isinstance(dtype, str) and dtype == "auto":
        platform = backend() if mesh is None else mesh.devices.flat[0].platform
        return jnp.dtype("float32" if platform == "cpu" else "bfloat16")
    # NumPy takes None for float64.
    with contextlib.suppress(TypeError):
        if dtype is not None and (found := jnp.dtype(dtype)) in map(jnp.dtype, known):
            return found
    raise ValueError(f"{name}={dtype!r}; expected one of auto, {', '.join(known)}")


def save_parts(parts: PipelineParts, folder: Path, layout: Layout) -> None:
    """Writes a checkpoint, whole or not at all: the folder appears when it is complete.

    Raises:
        ValueError: Unknown layout.
        FileExistsError: There is such a folder, and it is not empty.
        OSError: The folder cannot be written to, or the disk is full.
    """
    check_layout(layout)
    with new_folder(check_new_folder(folder)) as target:
        save_weights(parts.transformer.module, target, "transformer", layout)
        save_weights(parts.vae.module, target, "vae", layout)
        if parts.text_encoder is not None:
            save_weights(parts.text_encoder.encoder.module, target, "text_encoder", layout)
            parts.text_encoder.tokenizer.save(target)
        (target / "scheduler").mkdir(exist_ok=True)
        write_json(target / "scheduler" / "scheduler_config.json", parts.scheduler.to_diffusers())
        if parts.defaults != SamplingDefaults():
            write_json(target / DEFAULTS_FILE, parts.defaults.to_json())
        index = parts.config.to_diffusers(parts.scheduler)
        if parts.text_encoder is None:
            index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
        else:
            index |= {"tokenizer": ["transformers", parts.text_encoder.tokenizer.published_class]}
        write_json(target / "model_index.json", index)
