"""A distillation of small networks with random weights, on windows that are drawn."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import TransformerConfig
from helios_jax.models.discriminator import DiscriminatorConfig
from helios_jax.training.batch import LatentBatch, LatentPair, PromptBatch
from helios_jax.training.distiller import Distill, Distilling
from helios_jax.training.ema import Ema
from helios_jax.training.experiment import Experiment, Lora
from helios_jax.training.injection import Injection
from helios_jax.training.optimizer import AdamW
from helios_jax.training.sharding import MeshShape
from helios_jax.training.starts import Random

CONFIG = TransformerConfig(
    num_heads=2,
    head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=12,
    freq_dim=16,
    ffn_dim=48,
    num_layers=2,
    rope_dim=(4, 6, 6),
)
START = Random(transformer=CONFIG, dtype="float32")
BATCH, SIZE = 2, 16
HEADS = DiscriminatorConfig(hooks=(0, 1), width=8, groups=2)
LORA = Lora(rank=2, targets=("transformer/blocks/.*", "transformer/condition_embedder/.*"))


class WithoutText(Distill):
    """The negative prompt's embeddings are given, so no text encoder is needed."""

    def negative_embeds(self, score: Any, mesh: Any, fallback: str) -> Any:
        return jax.random.normal(jax.random.key(77), (1, 5, 12))


def window(seed: int, *, empty: bool = False) -> LatentBatch:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal((BATCH, *shape)), jnp.float32)

    past = 0.0 if empty else 1.0
    return LatentBatch(
        target=draw(9, SIZE, SIZE, 4),
        history=past * draw(19, SIZE, SIZE, 4),
        anchor=past * draw(1, SIZE, SIZE, 4),
        text=PromptBatch(embeds=draw(5, 12)),
    )


PAIR = LatentPair(generator=window(1), critic=window(2))


class NoData:
    """Batches are passed to ``step`` directly."""

    windows = 2

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Any:
        raise NotImplementedError


class NoProduct:
    def export(self, networks: Any, folder: Any) -> None:
        raise NotImplementedError


def experiment(changes: Mapping[str, Any] | None = None, **of_run: Any) -> Experiment:
    """A run with ``changes`` to the settings of the distillation and others to those of the run."""
    settings = WithoutText(
        score=START,
        critic_lora=LORA,
        critic_optimizer=AdamW(learning_rate=1e-3, clip_norm=0),
        context=Injection.published(),
        **changes or {},
    )
    run: dict[str, Any] = {
        "start": START,
        "method": settings,
        "data": NoData(),
        "product": NoProduct(),
        "optimizer": AdamW(learning_rate=1e-3, betas=(0.0, 0.999)),
        "steps": 12,
        "batch_size": BATCH,
        "lora": LORA,
        "trainable": ((".*/lora_[ab]", 1),),
        "ema": Ema(decay=0.5, start=3),
    }
    return Experiment(**run | of_run)


def running(restore: Any = None, **changes: Any) -> Distilling:
    """A distillation at its first step, or at the one that ``restore`` gives."""
    run: Any = experiment(changes)
    return run.method.start(run, MeshShape().build(), restore)
