"""What a row costs: operations of a chunk, training steps of equal cost, minutes of training.

Operations are those of the transformer, by equation (1) of ``helios_jax.training.flops``. The VAE and the text encoder,
which all rows share, are not counted.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from helios_jax.config import HistoryConfig, SchedulerConfig, TransformerConfig, patch_tokens
from helios_jax.diffusion.pyramid import level_sizes
from helios_jax.experiments import stage1_init, stage2_init
from helios_jax.training.batch import LatentBatch, PromptBatch
from helios_jax.training.flops import NetworkCalls, forward_flops, history_tokens
from helios_jax.training.metrics import read_metrics
from helios_jax.training.overrides import frozen


def chunk_flops(
    config: TransformerConfig,
    scheduler: SchedulerConfig,
    layout: HistoryConfig,
    size: tuple[int, int],
    *,
    steps: Sequence[int],
    text: int,
    guided: bool,
) -> float:
    """Operations of the transformer for one chunk of one video.

    Args:
        config: The transformer.
        scheduler: The levels.
        layout: The context.
        size: Latent rows and columns.
        steps: Network calls per level.
        text: Text tokens.
        guided: Every call is made for two prompts.
    """
    tokens = [patch_tokens(config, layout.chunk_frames, *level) for level in level_sizes(scheduler, *size)]
    current = tuple(count for count, calls in zip(tokens, steps, strict=True) for _ in range(calls))
    calls = NetworkCalls(current=current, history=history_tokens(config, layout, *size), text=text)
    forward = forward_flops(config, calls)
    return (2 if guided else 1) * (forward.weights + forward.attention)


def full_resolution_steps(size: str, stage2_steps: int, latent: tuple[int, int], text: int, batch: int = 0) -> int:
    """Steps of stage 1 that take as many operations as ``stage2_steps`` steps of stage 2, for all samples of a batch.

    Args:
        size: One of ``stage1_init.SMALL``.
        stage2_steps: Steps of stage 2.
        latent: Latent rows and columns of the clips.
        text: Text tokens.
        batch: Samples per step of both; 0: those of the experiments.
    """
    first, second = (frozen(stage.get_config(size)) for stage in (stage1_init, stage2_init))
    networks = jax.eval_shape(lambda: first.initial_networks(first.mesh.build()))
    frames = {"target": 9, "history": HistoryConfig().buffer_frames, "anchor": 1}
    clips = {name: jnp.zeros((1, count, *latent, 16)) for name, count in frames.items()}
    tokens = PromptBatch(tokens=jnp.zeros((1, text), jnp.int32), lengths=jnp.ones(1, jnp.int32))
    window, costs = LatentBatch(**clips, text=tokens), []
    for experiment in (first, second):
        forward = forward_flops(networks.transformer.config, experiment.method.network_calls(networks, window))
        costs.append((batch or experiment.batch_size) * (forward.weights + forward.attention))
    return round(stage2_steps * costs[1] / costs[0])


def training_minutes(run: Path) -> float | None:
    """Minutes that a run's steps took, from its log; ``None`` without one. Compiling and saving are not counted."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return None
    seconds, before = 0.0, 0
    for step, values in sorted(read_metrics(file).items()):
        if "seconds_per_step" in values:
            seconds += (step - before) * values["seconds_per_step"]
            before = step
    return round(seconds / 60, 2)
