"""Small checkpoints with random weights in the published layout, for demonstrations and tests."""

import json
import string
from pathlib import Path as FilePath

import jax
from flax import nnx

from helios_jax.checkpoints.diffusers import save_diffusers, write_json
from helios_jax.config import (
    PipelineConfig,
    SchedulerConfig,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
)
from helios_jax.typing import Path


def write_random_checkpoint(
    folder: Path,
    *,
    transformer: TransformerConfig | None = None,
    vae: VaeConfig | None = None,
    text_encoder: TextEncoderConfig | None = None,
    scheduler: SchedulerConfig | None = None,
    pipeline: PipelineConfig | None = None,
    seed: int = 0,
) -> None:
    """Writes a whole checkpoint, weights freshly drawn, a tokenizer of single characters.

    Args:
        folder: Where to write; must not hold a checkpoint.
        transformer: ``TransformerConfig.tiny()`` by default; its ``text_dim`` must be the encoder's width.
        vae: ``VaeConfig.tiny()`` by default.
        text_encoder: ``TextEncoderConfig.tiny()`` by default.
        scheduler: That of Helios-Distilled by default.
        pipeline: Helios-Distilled by default.
        seed: Seed of the weights.

    Raises:
        FileExistsError: The folder holds weights.
    """
    from helios_jax.models import HeliosTransformer, Umt5Encoder, WanVae

    folder = FilePath(folder)
    modules = {
        "transformer": (HeliosTransformer, transformer or TransformerConfig.tiny()),
        "vae": (WanVae, vae or VaeConfig.tiny()),
        "text_encoder": (Umt5Encoder, text_encoder or TextEncoderConfig.tiny()),
    }
    for index, (name, (module, config)) in enumerate(modules.items()):
        key = jax.random.fold_in(jax.random.key(seed), index)
        save_diffusers(module(config, dtype="float32", rngs=nnx.Rngs(key)), folder, name)
    write_character_tokenizer(folder)
    scheduler = scheduler or SchedulerConfig.distilled()
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler.to_diffusers())
    index = (pipeline or PipelineConfig(is_distilled=True)).to_diffusers(scheduler)
    write_json(folder / "model_index.json", index)


def write_character_tokenizer(folder: FilePath) -> None:
    """Writes ``tokenizer/tokenizer.json`` whose pieces are single characters, with T5's special tokens."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, *string.digits, *string.punctuation]
    special = [
        {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for i, piece in enumerate(pieces[:3])
    ]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": space,
        "post_processor": None,
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [[piece, 0.0] for piece in pieces], "byte_fallback": False},
    }
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1, ensure_ascii=False) + "\n")
