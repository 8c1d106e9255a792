"""Small checkpoints with random weights in the published layout, for demonstrations and tests."""

import json
import math
import string
from collections.abc import Callable, Iterable
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.checkpoints.components import write_json
from helios_jax.checkpoints.diffusers import save_diffusers
from helios_jax.checkpoints.key_tables import ParamPath
from helios_jax.config import (
    PipelineConfig,
    SchedulerConfig,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
)
from helios_jax.models.network import ConfiguredModule, Network
from helios_jax.typing import DType, Path
from helios_jax.user_input import user_path

Draw = Callable[[float, float, tuple[int, ...], DType], jax.Array]
"""(mean, std, shape, dtype) -> array."""


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
    """Writes a whole checkpoint with freshly drawn weights and a tokenizer of single characters.

    Args:
        folder: The folder to write; it must not hold a checkpoint.
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

    folder = user_path(folder, "folder")
    modules = {
        "transformer": (HeliosTransformer, transformer or TransformerConfig.tiny()),
        "vae": (WanVae, vae or VaeConfig.tiny()),
        "text_encoder": (Umt5Encoder, text_encoder or TextEncoderConfig.tiny()),
    }
    generator = np.random.default_rng(seed)

    def draw(mean: float, std: float, shape: tuple[int, ...], dtype: DType) -> jax.Array:
        return jnp.asarray(mean + std * generator.standard_normal(shape), dtype)

    for name, (module, config) in modules.items():
        network = random_network(module, config, "float32", draw)
        save_diffusers(network.module, folder, name)
    write_character_tokenizer(folder)
    scheduler = scheduler or SchedulerConfig.distilled()
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler.to_diffusers())
    index = (pipeline or PipelineConfig(is_distilled=True)).to_diffusers(scheduler)
    write_json(folder / "model_index.json", index)


def random_network(module: Callable[..., ConfiguredModule], config: Any, dtype: DType, draw: Draw) -> Network:
    """A network with weights from ``draw(mean, std, shape, dtype)``, called once per parameter.

    Kernels have variance 1 / fan-in, so activations keep the scale of their input; norm weights are 1, biases 0.
    This is much faster than the modules' own initialisers, which compile a program per shape.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: module(config, dtype=dtype, rngs=nnx.Rngs(0))))
    filled = [
        (path, variable.replace(draw(*_moments(path, variable.shape), variable.shape, variable.dtype)))
        for path, variable in nnx.to_flat_state(abstract)
    ]
    return Network(graph=graph, params=nnx.from_flat_state(filled))


def _moments(path: ParamPath, shape: tuple[int, ...]) -> tuple[float, float]:
    """(mean, standard deviation) of a parameter."""
    name = path[-1]
    if name in ("scale", "gamma", "history_key_scale"):
        return 1.0, 0.0
    if name == "bias":
        return 0.0, 0.0
    stacked = "blocks" in path or "block" in path
    fan_in = math.prod(shape[stacked:-1]) if name == "kernel" else shape[-1]
    return 0.0, fan_in**-0.5


def write_character_tokenizer(folder: FilePath) -> None:
    """Writes a ``tokenizer/tokenizer.json`` with single characters as pieces and T5's special tokens."""
    pieces = [*_SPECIAL, "▁", *string.ascii_letters, *string.digits, *string.punctuation]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    model = {"type": "Unigram", "unk_id": 2, "vocab": [[piece, 0.0] for piece in pieces], "byte_fallback": False}
    _write_tokenizer(folder, model=model, pre_tokenizer=space, decoder=space)


def write_word_tokenizer(folder: FilePath, words: Iterable[str]) -> int:
    """Writes a ``tokenizer/tokenizer.json`` with whole words as pieces and T5's special tokens.

    Text is lowercased, and punctuation is separated from words. All other words are unknown.

    Args:
        folder: The checkpoint.
        words: Words and punctuation, in lower case.

    Returns:
        The number of pieces.
    """
    pieces = [*_SPECIAL, *sorted(set(words))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": _SPECIAL[2]}
    _write_tokenizer(folder, model=model, normalizer={"type": "Lowercase"}, pre_tokenizer={"type": "Whitespace"})
    return len(pieces)


_SPECIAL = ("<pad>", "</s>", "<unk>")


def _write_tokenizer(folder: FilePath, **parts: Any) -> None:
    """Writes a tokenizer with these parts in the format of the package ``tokenizers``."""
    special = [
        {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for i, piece in enumerate(_SPECIAL)
    ]
    empty = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    tokenizer = {"version": "1.0", "added_tokens": special, **empty, **parts}
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1, ensure_ascii=False) + "\n")
