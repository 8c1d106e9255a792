"""Whole checkpoints: all parts of a pipeline, in either layout."""

import contextlib
import dataclasses
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.checkpoints.components import write_json
from helios_jax.checkpoints.footprint import footprint
from helios_jax.checkpoints.hub import local_folder
from helios_jax.checkpoints.new_folder import check_new_folder, new_folder
from helios_jax.checkpoints.settings import PipelineSettings, read_settings
from helios_jax.checkpoints.weights import Layout, check_layout, check_weights, load_weights, save_weights
from helios_jax.config import PipelineConfig, SchedulerConfig, TextEncoderConfig
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder, Tokenizer, check_tokenizer
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.models.vae import WanVae
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
    """

    config: PipelineConfig
    scheduler: SchedulerConfig
    transformer: Network[HeliosTransformer]
    vae: Network[WanVae]
    text_encoder: TextEncoder | None = None


def load_parts(
    path: Path,
    *,
    dtype: DType,
    vae_dtype: DType,
    mesh: jax.sharding.Mesh | None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | None = None,
    allow_cpu: bool = False,
) -> PipelineParts:
    """Loads a checkpoint; see ``HeliosPipeline.from_pretrained`` for arguments and errors."""
    dtypes = {"transformer": compute_dtype(dtype, "dtype"), "vae": compute_dtype(vae_dtype, "vae_dtype")}
    dtypes["text_encoder"] = dtypes["transformer"]
    settings = read_settings(path, revision=revision, token=token, cache_dir=cache_dir)
    footprint(settings, dtype=dtypes["transformer"], vae_dtype=dtypes["vae"], mesh=mesh).check(allow_cpu=allow_cpu)
    folder = local_folder(path, revision=revision, token=token, cache_dir=cache_dir)
    # All files are checked before the first weights are read.
    for component in settings.components:
        check_weights(folder, component)
    tokenizer = None if settings.text_encoder is None else read_tokenizer(folder, settings.text_encoder)

    def load(component: str) -> Network[Any]:
        return Network.of(load_weights(folder, component, dtype=dtypes[component], mesh=mesh))

    return PipelineParts(
        config=settings.config,
        scheduler=settings.scheduler,
        text_encoder=None if tokenizer is None else TextEncoder.create(load("text_encoder").module, tokenizer),
        transformer=load("transformer"),
        vae=load("vae"),
    )


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


def compute_dtype(dtype: DType, name: str) -> np.dtype:
    """``dtype`` as NumPy's. Raises ValueError unless networks compute in it."""
    known = ("bfloat16", "float32")
    # NumPy takes None for float64.
    with contextlib.suppress(TypeError):
        if dtype is not None and (found := jnp.dtype(dtype)) in map(jnp.dtype, known):
            return found
    raise ValueError(f"{name}={dtype!r}; expected one of {', '.join(known)}")


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
        index = parts.config.to_diffusers(parts.scheduler)
        if parts.text_encoder is None:
            index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
        write_json(target / "model_index.json", index)
