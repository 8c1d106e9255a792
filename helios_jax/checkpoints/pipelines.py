"""Whole checkpoints: all components of a pipeline, in either layout."""

from pathlib import Path as FilePath
from typing import Literal, get_args

import jax

from helios_jax.checkpoints.components import read_json, write_json
from helios_jax.checkpoints.diffusers import load_diffusers, save_diffusers
from helios_jax.checkpoints.hub import local_folder
from helios_jax.checkpoints.orbax import has_orbax_weights, load_orbax, save_orbax
from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder, Tokenizer
from helios_jax.sampling.pipeline import HeliosPipeline
from helios_jax.typing import DType, Path

SaveLayout = Literal["diffusers", "orbax"]


def load_pipeline(path: Path, *, dtype: DType, vae_dtype: DType, mesh: jax.sharding.Mesh | None) -> HeliosPipeline:
    """See ``HeliosPipeline.from_pretrained``."""
    folder = local_folder(path)
    config = PipelineConfig.from_diffusers(read_json(folder / "model_index.json"))
    scheduler = SchedulerConfig.from_diffusers(read_json(folder / "scheduler" / "scheduler_config.json"))

    def load(component: str, dtype: DType) -> Network:
        load_weights = load_orbax if has_orbax_weights(folder / component) else load_diffusers
        return Network.of(load_weights(folder, component, dtype=dtype, mesh=mesh))

    text_encoder = None
    if (folder / "text_encoder").is_dir():
        text_encoder = TextEncoder.create(load("text_encoder", dtype).module, Tokenizer.from_folder(folder))
    return HeliosPipeline(
        config=config,
        scheduler=scheduler,
        transformer=load("transformer", dtype),
        vae=load("vae", vae_dtype),
        text_encoder=text_encoder,
    )


def save_pipeline(pipeline: HeliosPipeline, folder: Path, layout: SaveLayout) -> None:
    """See ``HeliosPipeline.save``."""
    if layout not in get_args(SaveLayout):
        raise ValueError(f"unknown layout {layout!r}; expected one of {', '.join(get_args(SaveLayout))}")
    target = FilePath(folder)
    if (target / "model_index.json").exists():
        raise FileExistsError(f"{target} already holds a checkpoint; choose another folder or remove it first")
    save_weights = save_orbax if layout == "orbax" else save_diffusers
    save_weights(pipeline.transformer.module, target, "transformer")
    save_weights(pipeline.vae.module, target, "vae")
    if pipeline.text_encoder is not None:
        save_weights(pipeline.text_encoder.encoder.module, target, "text_encoder")
        pipeline.text_encoder.tokenizer.save(target)
    (target / "scheduler").mkdir(exist_ok=True)
    write_json(target / "scheduler" / "scheduler_config.json", pipeline.scheduler.to_diffusers())
    # Written last: a folder without it is an unfinished checkpoint.
    write_json(target / "model_index.json", pipeline.config.to_diffusers(pipeline.scheduler))
