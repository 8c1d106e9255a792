"""Whole checkpoints: all parts of a pipeline, in either layout."""

import dataclasses
from pathlib import Path as FilePath
from typing import Any

import jax

from helios_jax.checkpoints.components import read_json, write_json
from helios_jax.checkpoints.hub import local_folder
from helios_jax.checkpoints.weights import Layout, check_layout, load_weights, save_weights
from helios_jax.config import PipelineConfig, SchedulerConfig, TextEncoderConfig, TransformerConfig, VaeConfig
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder, Tokenizer
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.models.vae import WanVae
from helios_jax.typing import DType, Path


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """The settings of a checkpoint: all that is known about it before its weights are read.

    Attributes:
        folder: The checkpoint's folder on disk.
        config: From ``model_index.json``.
        scheduler: From ``scheduler/scheduler_config.json``.
        transformer: From ``transformer/config.json``.
        vae: From ``vae/config.json``.
        text_encoder: From ``text_encoder/config.json``; ``None`` when the checkpoint has none.
    """

    folder: FilePath
    config: PipelineConfig
    scheduler: SchedulerConfig
    transformer: TransformerConfig
    vae: VaeConfig
    text_encoder: TextEncoderConfig | None = None


def read_settings(
    path: Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | None = None,
) -> PipelineSettings:
    """Reads and checks the settings of a checkpoint, but no weights; from the hub, only the JSON files are downloaded.

    Args:
        path: See ``local_folder``, as for the other arguments.
        revision: See ``local_folder``.
        token: See ``local_folder``.
        cache_dir: See ``local_folder``.

    Raises:
        FileNotFoundError: The folder or a part of it is missing.
        ValueError: Something in it is not supported or does not fit.
    """
    folder = local_folder(path, weights=False, revision=revision, token=token, cache_dir=cache_dir)
    config = PipelineConfig.from_diffusers(read_json(folder / "model_index.json"))
    scheduler = SchedulerConfig.from_diffusers(read_json(folder / "scheduler" / "scheduler_config.json"))
    text_encoder = None
    if (folder / "text_encoder").is_dir():
        text_encoder = TextEncoderConfig.from_diffusers(read_json(folder / "text_encoder" / "config.json"))
    return PipelineSettings(
        folder=folder,
        config=config,
        scheduler=scheduler,
        transformer=TransformerConfig.from_diffusers(read_json(folder / "transformer" / "config.json")),
        vae=VaeConfig.from_diffusers(read_json(folder / "vae" / "config.json")),
        text_encoder=text_encoder,
    )


def load_parts(
    path: Path,
    *,
    dtype: DType,
    vae_dtype: DType,
    mesh: jax.sharding.Mesh | None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | None = None,
) -> PipelineParts:
    """Loads a checkpoint; see ``HeliosPipeline.from_pretrained`` for arguments and errors."""
    settings = read_settings(path, revision=revision, token=token, cache_dir=cache_dir)
    folder = local_folder(path, revision=revision, token=token, cache_dir=cache_dir)

    def load(component: str, dtype: DType) -> Network[Any]:
        return Network.of(load_weights(folder, component, dtype=dtype, mesh=mesh))

    text_encoder = None
    if settings.text_encoder is not None:
        text_encoder = TextEncoder.create(load("text_encoder", dtype).module, Tokenizer.from_folder(folder))
    return PipelineParts(
        config=settings.config,
        scheduler=settings.scheduler,
        transformer=load("transformer", dtype),
        vae=load("vae", vae_dtype),
        text_encoder=text_encoder,
    )


def save_parts(parts: PipelineParts, folder: Path, layout: Layout) -> None:
    """Writes a checkpoint.

    Raises:
        ValueError: Unknown layout.
        FileExistsError: The folder already holds a checkpoint.
    """
    check_layout(layout)
    target = FilePath(folder)
    if (target / "model_index.json").exists():
        raise FileExistsError(f"{target} already holds a checkpoint; choose another folder or remove it first")
    save_weights(parts.transformer.module, target, "transformer", layout)
    save_weights(parts.vae.module, target, "vae", layout)
    if parts.text_encoder is not None:
        save_weights(parts.text_encoder.encoder.module, target, "text_encoder", layout)
        parts.text_encoder.tokenizer.save(target)
    (target / "scheduler").mkdir(exist_ok=True)
    write_json(target / "scheduler" / "scheduler_config.json", parts.scheduler.to_diffusers())
    # Written last: a folder without it is an unfinished checkpoint.
    write_json(target / "model_index.json", parts.config.to_diffusers(parts.scheduler))
