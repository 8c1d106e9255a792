"""Seconds and memory of stage 3's updates: the 14B model with random weights, drawn on the device.

    python benchmarks/distillation.py --out=distillation.json

Generator and critic as published: LoRA of rank 256 on both, heads of the discriminator on four blocks and on the
velocity, AdamW without momentum, 384x640, batch 1, with real contexts. ``resident`` keeps everything on the device,
``scheduled`` parks what the next programs do not need in host memory; each is measured in a process of its own.

Updates of the generator take exits of their own, so that their times differ; figures are means over ``--cycles`` updates
with contexts (2 steps a level) and as many without (4 steps a level: amplified first chunks). "Floor" is the arithmetic
that is executed, at 600 TFLOP/s without gradients and 515 TFLOP/s with them, the rates of this model's training steps on
an H100. The device waits for the host between updates here, but not in training: "five steps" is a whole cycle of one
generator update and five critic updates, in the order and without the waits of training.
"""

import dataclasses
import resource
import statistics
import time
from collections.abc import Sequence
from typing import Any

MEMORY = ("resident", "scheduled")
RATES = {"without gradients": 600e12, "with gradients": 515e12}


def measure(memory: str, size: str, cycles: int, remat: str) -> dict[str, Any]:
    """Measures one form of memory in this process."""
    import jax
    import jax.numpy as jnp
    from inference import SIZES, draws

    from helios_jax.checkpoints.random import random_network
    from helios_jax.distillation.gan import Gan
    from helios_jax.experiments import stage3_distill_gan
    from helios_jax.models import HeliosTransformer
    from helios_jax.models.discriminator import DiscriminatorConfig
    from helios_jax.training.batch import LatentBatch, LatentPair, PromptBatch
    from helios_jax.training.distiller import Distill, Distilling
    from helios_jax.training.injection import ContextDrop
    from helios_jax.training.networks import Networks
    from helios_jax.training.overrides import frozen

    config = SIZES[size][0]
    height, width = (48, 80) if size == "14b" else (16, 16)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Drawn:
        """A transformer with random weights."""

        seed: int

        def networks(self, mesh: jax.sharding.Mesh, key: jax.Array) -> Networks:
            return Networks(transformer=random_network(HeliosTransformer, config, "bfloat16", draws(self.seed)).module)

    def normal(seed: int, *shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), (1, *shape), jnp.bfloat16)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class WithoutText(Distill):
        """The negative prompt's embeddings are drawn: there is no text encoder."""

        def negative_embeds(self, score: Networks, mesh: jax.sharding.Mesh, fallback: str) -> jax.Array:
            return normal(9, 512, config.text_dim)

    experiment = frozen(stage3_distill_gan.get_config("14b"))
    heads = DiscriminatorConfig() if size == "14b" else DiscriminatorConfig(hooks=(0, 1), width=16, groups=4)
    settings = {field.name: getattr(experiment.method, field.name) for field in dataclasses.fields(experiment.method)}
    settings |= {
        "memory": memory,
        "score": Drawn(seed=1),
        "gan": Gan(start_step=0, heads=heads, crop=0.5 if size == "14b" else 1.0),
        # Whether a context is empty is decided by the batch alone.
        "context": dataclasses.replace(experiment.method.context, drop=ContextDrop(t2v=0.0, i2v=0.0, v2v=0.0)),
    }
    experiment = dataclasses.replace(
        experiment, start=Drawn(seed=0), method=WithoutText(**settings), batch_size=1, remat=remat
    )
    start = time.perf_counter()
    running = experiment.method.start(experiment, experiment.mesh.build(), None)
    assert isinstance(running, Distilling)
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(running.items())])
    figures: dict[str, Any] = {"start, s": time.perf_counter() - start}

    def window(seed: int, past: float) -> LatentBatch:
        return LatentBatch(
            target=normal(seed, 9, height, width, 16),
            history=past * normal(seed + 1, 19, height, width, 16),
            anchor=past * normal(seed + 2, 1, height, width, 16),
            text=PromptBatch(embeds=normal(seed + 3, 512, config.text_dim)),
        )

    pairs = {past: LatentPair(generator=window(10, past), critic=window(20, past)) for past in (1.0, 0.0)}

    def seconds(call: Any, *arguments: Any) -> float:
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        return time.perf_counter() - start

    start = time.perf_counter()
    for past, pair in pairs.items():
        # Exits decide which levels' gradients are compiled: with exits 0 above, all of them.
        for step in all_levels(running, pair, past):
            running._update_generator(pair.generator, step)
        jax.block_until_ready(running._update_critic(pair, 0))
    figures["compilation, s"] = time.perf_counter() - start
    for past, name in ((1.0, "with context"), (0.0, "first chunk")):
        pair, times, floors = pairs[past], [], []
        for step in range(cycles):
            times.append(seconds(running._update_generator, pair.generator, step))
            floors.append(floor(running, pair, step, amplified=not past))
        figures[f"generator, {name}, s"] = statistics.mean(times)
        figures[f"generator, {name}, share of the floor"] = sum(floors) / sum(times)
        times = [seconds(running._update_critic, pair, step) for step in range(cycles)]
        figures[f"critic, {name}, s"] = statistics.mean(times)
    start = time.perf_counter()
    for number in range(1, 6):
        metrics = running.step(pairs[1.0], number)
    jax.block_until_ready(metrics)
    figures["five steps, s"] = time.perf_counter() - start
    for player in ("generator", "critic"):
        both = [figures[f"{player}, {name}, s"] for name in ("with context", "first chunk")]
        figures[f"{player}, 60 % with context, s"] = 0.6 * both[0] + 0.4 * both[1]
    stats = jax.devices()[0].memory_stats() or {}
    figures |= {
        "peak device memory, GB": stats.get("peak_bytes_in_use", 0) / 1e9,
        "peak host memory, GB": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9,
        "loss of the generator": float(running._update_generator(pairs[1.0].generator, 0)["loss"]),
        "held": {name: dataclasses.asdict(held) for name, held in running._residence.report().items()},
    }
    return figures


def all_levels(running: Any, pair: Any, past: float) -> Sequence[int]:
    """Steps whose exits together compile every program of the generator."""
    reached: dict[int, int] = {}
    for step in range(64):
        lowest = lowest_level(running, step, amplified=not past)
        reached.setdefault(lowest, step)
    return [reached[min(reached)]]


def exits_of(running: Any, step: int, *, amplified: bool) -> tuple[int, ...]:
    """The exits that the generator draws at a step."""
    from helios_jax.distillation.rollout import draw_exits
    from helios_jax.training.distiller import GENERATOR, use_of

    settings, layout = running._settings, running._settings.context.layout
    plans = settings.plans(running._config, layout.chunk_frames, running._size, amplify=amplified)
    return draw_exits((running._experiment.seed, use_of(GENERATOR), step, 0, int(amplified)), plans)


def lowest_level(running: Any, step: int, *, amplified: bool) -> int:
    """The lowest level that a gradient reaches at a step."""
    from helios_jax.distillation.rollout import lowest_trained

    return lowest_trained(exits_of(running, step, amplified=amplified))
