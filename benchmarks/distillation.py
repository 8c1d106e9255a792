"""Seconds and memory of stage 3's updates: the 14B model with random weights, drawn on the device.

    python benchmarks/distillation.py --out=distillation.json

Generator and critic as published: LoRA of rank 256 on both, heads of the discriminator on four blocks and on the
velocity, AdamW without momentum, 384x640, batch 1, with real contexts. ``resident`` keeps everything on the device,
``scheduled`` parks what the next programs do not need in host memory; each is measured in a process of its own.

Updates of the generator take exits of their own, so that their times differ; figures are means over ``--cycles``
updates with contexts (2 steps a level) and as many without (4 steps a level: amplified first chunks). "Floor" is the
time of the arithmetic that is executed at 600 TFLOP/s without gradients and 515 TFLOP/s with them, rates that were
measured in training steps of this model. The device waits for the host between these updates. "Five steps" is a whole
cycle, one update of the generator and five of the critic, in the order and without the waits of training.
"""

import argparse
import dataclasses
import itertools
import json
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provenance import provenance
from training import run_apart

MEMORY = ("resident", "scheduled")
FORWARD, GRADIENT = 600e12, 515e12
"""Operations per second without and with gradients."""


def measure(memory: str, size: str, cycles: int, remat: str) -> dict[str, Any]:
    """Measures one form of memory in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np
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
    from helios_jax.training.sharding import put_batch

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
    mesh = experiment.mesh.build()
    running = experiment.method.start(experiment, mesh, None)
    assert isinstance(running, Distilling)
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(running.items())])
    figures: dict[str, Any] = {}

    def note(name: str, value: float) -> None:
        figures[name] = value
        print(f"{memory:12s}{name:44s}{value:10.2f}", flush=True)

    note("start, s", time.perf_counter() - start)
    note("device memory after the start, GB", (jax.devices()[0].memory_stats() or {}).get("bytes_in_use", 0) / 1e9)

    def window(seed: int, past: float) -> LatentBatch:
        return LatentBatch(
            target=normal(seed, 9, height, width, 16),
            history=past * normal(seed + 1, 19, height, width, 16),
            anchor=past * normal(seed + 2, 1, height, width, 16),
            text=PromptBatch(embeds=normal(seed + 3, 512, config.text_dim)),
        )

    # As in training, batches are on the mesh: without that, programs of the lowest level are compiled twice.
    pairs = {
        past: put_batch(
            jax.tree.map(np.asarray, LatentPair(generator=window(10, past), critic=window(20, past))), 1, mesh
        )
        for past in (1.0, 0.0)
    }

    def peak() -> int:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

    def seconds(call: Any, *arguments: Any) -> float:
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        return time.perf_counter() - start

    contexts = {1.0: "with context", 0.0: "first chunk"}

    calls = {
        "generator": lambda pair, step: running._update_generator(pair.generator, step),
        "critic": lambda pair, step: running._update_critic(pair, step),
    }
    compiled = 0.0
    for player, call in calls.items():
        for past, pair in pairs.items() if player == "generator" else [(1.0, pairs[1.0])]:
            # A gradient reaches every level, and the first one takes two steps, so that all programs are compiled.
            steps = ((i, exits_at(running, player, i, amplified=not past)) for i in itertools.count())
            step = next(i for i, exits in steps if exits[0] and not any(exits[1:]))
            duration = seconds(call, pair, step)
            print(f"{memory:12s}first update of the {player}: {duration:.1f} s", flush=True)
            compiled += duration
        for past, name in contexts.items():
            times = [seconds(call, pairs[past], step) for step in range(cycles)]
            exits = [exits_at(running, player, step, amplified=not past) for step in range(cycles)]
            note(f"{player}, {name}, s", statistics.mean(times))
            floors = [floor(config, player, one, (height, width)) for one in exits]
            note(f"{player}, {name}, share of the floor", sum(floors) / sum(times))
        note(f"peak device memory after the {player}, GB", peak() / 1e9)
        note(
            f"peak host memory after the {player}, GB", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
        )
    note("first updates with compilation, s", compiled)
    note("five steps, s", seconds(lambda: [running.step(pairs[1.0], number) for number in range(1, 6)]))
    for player in calls:
        both = [figures[f"{player}, {name}, s"] for name in contexts.values()]
        note(f"{player}, 60 % with context, s", 0.6 * both[0] + 0.4 * both[1])
    figures |= {
        "peak device memory, GB": peak() / 1e9,
        "peak host memory, GB": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9,
        "loss of the generator": float(running._update_generator(pairs[1.0].generator, 0)["loss"]),
        "held": {name: dataclasses.asdict(held) for name, held in running._residence.report().items()},
    }
    print(json.dumps(figures, indent=1), flush=True)
    return figures


def exits_at(running: Any, player: str, step: int, *, amplified: bool) -> tuple[int, ...]:
    """The exits of a player's rollout at a step."""
    from helios_jax.distillation.rollout import draw_exits
    from helios_jax.training.distiller import exit_seed

    settings = running._settings
    plans = settings.plans(running._config, settings.context.layout.chunk_frames, (48, 80), amplify=amplified)
    return draw_exits(exit_seed(running._experiment.seed, player, (step, 0), amplified), plans)


def floor(config: Any, player: str, exits: Sequence[int], size: tuple[int, int]) -> float:
    """Seconds that the arithmetic of a player's update takes, that of the discriminator included.

    The generator's: a rollout, three scores, gradients through the exits that are reached and through one crop. The
    critic's: a rollout, the gradient of the fake score, and that of the discriminator, which judges three crops.
    """
    from helios_jax.config import SchedulerConfig, patch_tokens
    from helios_jax.diffusion.pyramid import level_sizes
    from helios_jax.distillation.rollout import lowest_trained
    from helios_jax.training.flops import NetworkCalls, forward_flops

    history = 2400 if size == (48, 80) else 0
    tokens = [patch_tokens(config, 9, *level) for level in level_sizes(SchedulerConfig.distilled(), *size)]
    costs = [forward_flops(config, NetworkCalls(current=(n,), history=history, text=512)) for n in tokens]
    adapters = 2 * 1.25e9 / 14.3e9  # the adapters' share of the operations with weights: rank 256, two factors
    forward = [cost.weights * (1 + adapters / 2) + cost.attention for cost in costs]
    # Self-attention is saved. Its gradient takes 2.5 times its operations, since it computes the scores once more. The
    # other operations are repeated, once for the recomputation and once for the gradient in their inputs.
    gradient = [cost.weights * (2 + 1.5 * adapters) + 2.5 * cost.attention for cost in costs]
    trained = [sum(one) for one in zip(forward, gradient, strict=True)]
    walked = sum((exit + 1) * one for exit, one in zip(exits, forward, strict=True))
    crop = tokens.index(patch_tokens(config, 9, size[0] // 2, size[1] // 2))
    if player == "generator":
        reached = range(lowest_trained(exits), len(forward))
        return (walked + 3 * forward[-1]) / FORWARD + sum(trained[i] for i in [*reached, crop]) / GRADIENT
    return walked / FORWARD + (trained[-1] + 3 * trained[crop]) / GRADIENT


def main() -> None:
    """Measures one form of memory in this process, or all that are named, each in its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=MEMORY, action="append", help="may be repeated; by default both")
    parser.add_argument("--here", choices=MEMORY, help="measure this one in this process")
    parser.add_argument("--size", choices=("14b", "tiny"), default="14b")
    parser.add_argument("--cycles", type=int, default=4)
    parser.add_argument("--remat", default="offload")
    parser.add_argument("--out", type=Path, default=Path("distillation.json"))
    args = parser.parse_args()
    if args.here:
        figures = measure(args.here, args.size, args.cycles, args.remat)
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
        return
    report: dict[str, Any] = {"run": provenance()}
    for memory in args.memory or MEMORY:
        options = (f"--here={memory}", f"--size={args.size}", f"--cycles={args.cycles}", f"--remat={args.remat}")
        report[memory] = run_apart(Path(__file__), *options)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
