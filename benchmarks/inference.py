"""Speed and memory of sampling with random weights made on the device.

    python benchmarks/inference.py --size=14b --steps=1,1,1 --steps=2,2,2 --out=inference.json

Prints a table and writes JSON: milliseconds per network call at each level, per VAE decode and per text encoding;
seconds to the first chunk; frames per second end to end (text encoded once, VAE and uint8 transfer included), median
over chunks after the first two; compile seconds apart; peak device memory.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from absl.flags import argparse_flags
from flax import nnx

from helios_jax.config import PipelineConfig, SchedulerConfig, TextEncoderConfig, TransformerConfig, VaeConfig
from helios_jax.models import HeliosTransformer, Umt5Encoder, WanVae
from helios_jax.models.network import Network
from helios_jax.sampling import chunk as chunks
from helios_jax.sampling.noise import KeyNoise
from helios_jax.sampling.pipeline import HeliosPipeline
from helios_jax.sampling.stream import decode_chunk
from helios_jax.sampling.text import encode_tokens

FRAMES = 33
REPEATS = 5

SIZES = {
    "14b": (TransformerConfig.helios_14b(), VaeConfig.wan_2_1(), TextEncoderConfig.umt5_xxl()),
    "1_3b": (TransformerConfig.wan_1_3b(), VaeConfig.wan_2_1(), TextEncoderConfig.umt5_xxl()),
    "tiny": (TransformerConfig.tiny(), VaeConfig.tiny(), TextEncoderConfig.tiny()),
}


def random_network(module: type, config: Any, dtype: str, seed: int) -> Network:
    """A network with random weights, drawn parameter by parameter on the device.

    Kernels have variance 1 / fan-in, so that activations keep the scale of their input; norm weights are 1 and
    biases 0.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: module(config, dtype=dtype, rngs=nnx.Rngs(0))))

    def draw(path: tuple, variable: nnx.Variable, index: int) -> jax.Array:
        name = str(path[-1])
        if name in ("scale", "gamma"):
            return jnp.ones(variable.shape, variable.dtype)
        if name == "bias":
            return jnp.zeros(variable.shape, variable.dtype)
        shape = variable.shape
        stacked = len(shape) == 3 and ("blocks" in path or "block" in path)
        fan_in = math.prod(shape[stacked:-1]) if name == "kernel" else shape[-1]
        key = jax.random.fold_in(jax.random.key(seed), index)
        make = jax.jit(lambda key: jax.random.normal(key, shape, variable.dtype) * fan_in**-0.5)
        return make(key).astype(variable.dtype)

    flat = nnx.to_flat_state(abstract)
    filled = [(path, v.replace(draw(path, v, i))) for i, (path, v) in enumerate(flat)]
    return Network(graph=graph, params=nnx.from_flat_state(filled))


def milliseconds(call: Callable[[], Any]) -> tuple[float, float]:
    """(median milliseconds, seconds of the first call, which compiles)."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - start
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times), first


@dataclasses.dataclass(kw_only=True)
class Report:
    """Collects figures and prints them as they come."""

    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        """Records one figure."""
        self.figures[name] = value
        print(f"{name:48s} {value:.2f}" if isinstance(value, float) else f"{name:48s} {value}", flush=True)


def bench_parts(pipe: HeliosPipeline, embeds: jax.Array, height: int, width: int, report: Report) -> None:
    """Network calls per level, VAE decode, text encoder."""
    latents = {}

    def keep(info: chunks.StepInfo) -> None:
        latents[info.level] = jnp.array(info.latents)

    steps = (1,) * pipe.scheduler.num_levels if pipe.scheduler.num_levels > 1 else 1
    arguments = {"height": height, "width": width, "steps": steps, "amplify_first_chunk": False}
    stream = pipe.stream(prompt_embeds=embeds, num_frames=FRAMES, on_step=keep, **arguments)
    start = time.perf_counter()
    chunk = next(stream)
    report.add("compile and first chunk, s", time.perf_counter() - start)

    sampler, history = stream._sampler, stream._history
    solver = chunks.make_solver(pipe.scheduler)
    text = chunks.project_text(pipe.transformer, embeds)
    context = chunks.embed_history(pipe.transformer, history, sampler.history)
    total = 0.0
    for level, plan in enumerate(stream._plans):
        state = solver.init(latents[level])

        def step(level: int = level, plan: chunks.LevelPlan = plan, state: Any = state) -> Any:
            return chunks.denoise_step(
                pipe.transformer,
                solver,
                None,
                jax.tree.map(jnp.copy, state),
                text=text,
                context=context,
                rope=stream._ropes[level],
                timestep=plan.timesteps[0],
                row=plan.rows[0],
                scale=np.float32(1),
            )

        ms, _ = milliseconds(step)
        total += ms
        report.add(f"network call, level {level}, ms", ms)
    report.add("network calls, sum of levels, ms", total)
    final = jnp.asarray(chunk.latents)
    ms, seconds = milliseconds(lambda: decode_chunk(pipe.vae, final))
    report.add("VAE decode, 33 frames, ms", ms)
    report.add("VAE decode, compile, s", seconds)
    if pipe.text_encoder is not None:
        encoder = pipe.text_encoder
        ids, mask = jnp.ones((1, 512), jnp.int32), jnp.ones((1, 512), bool)
        ms, seconds = milliseconds(lambda: encode_tokens(encoder, ids, mask))
        report.add("text encoder, 512 tokens, ms", ms)
        report.add("text encoder, compile, s", seconds)


def bench_stream(
    pipe: HeliosPipeline, embeds: jax.Array, height: int, width: int, steps: Any, num_chunks: int, report: Report
) -> None:
    """First chunk and steady state end to end."""
    for run in ("cold", "warm"):
        stream = pipe.stream(
            prompt_embeds=embeds,
            num_frames=FRAMES * num_chunks,
            height=height,
            width=width,
            steps=steps,
            amplify_first_chunk=False,
            noise=KeyNoise(key=jax.random.key(1)),
        )
        seconds = [chunk.seconds for chunk in stream]
        if run == "warm":
            report.add(f"steps {steps}: first chunk, s", seconds[0])
            report.add(f"steps {steps}: frames per second", FRAMES / statistics.median(seconds[2:]))


def main(args: argparse.Namespace) -> None:
    """Runs everything."""
    report = Report()
    device = jax.devices()[0]
    report.add("device", device.device_kind)
    report.add("jax", jax.__version__)
    transformer, vae, text = SIZES[args.size]
    scheduler = SchedulerConfig.distilled()
    pipe = HeliosPipeline(
        config=PipelineConfig(is_distilled=True),
        scheduler=scheduler,
        transformer=random_network(HeliosTransformer, transformer, "bfloat16", 0),
        vae=random_network(WanVae, vae, args.vae_dtype, 1),
        text_encoder=random_network(Umt5Encoder, text, "bfloat16", 2) if args.text_encoder else None,
    )
    embeds = jax.random.normal(jax.random.key(3), (1, 512, transformer.text_dim), jnp.bfloat16)
    jax.block_until_ready(jax.tree.leaves(pipe.transformer))
    report.add("parameters of the transformer", sum(x.size for x in jax.tree.leaves(pipe.transformer)))
    bench_parts(pipe, embeds, args.height, args.width, report)
    for steps in args.steps:
        bench_stream(pipe, embeds, args.height, args.width, steps, args.chunks, report)
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        report.add("peak device memory, GB", stats["peak_bytes_in_use"] / 1e9)
    args.out.write_text(json.dumps(report.figures, indent=1) + "\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse_flags.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="14b")
    parser.add_argument(
        "--steps", action="append", type=lambda text: tuple(map(int, text.split(","))), help="may be repeated"
    )
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--vae_dtype", default="bfloat16")
    parser.add_argument("--text_encoder", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=Path("inference.json"))
    args = parser.parse_args(argv[1:])
    args.steps = args.steps or [(1, 1, 1), (2, 2, 2)]
    return args


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
