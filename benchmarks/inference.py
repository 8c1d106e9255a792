"""Speed and memory of sampling, with random weights drawn on the device.

    python benchmarks/inference.py --size=14b --steps=1,1,1 --steps=2,2,2 --out=inference.json

Prints a table and writes JSON: milliseconds per network call at each level, per VAE decode and per text encoding;
seconds to the first chunk; frames per second end to end (text encoded once, VAE and uint8 transfer included), median
over chunks after the first two; compile time separately; peak device memory; the rate of the network's matrix products
and attention, and for comparison that of one large matrix product repeated for a second, the ceiling of a chip at its
power limit.

If torch and diffusers are installed, ``peer_diffusers.py`` runs first on the same device and its figures are shown next
to these.
"""

import argparse
import collections
import dataclasses
import functools
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app
from absl.flags import argparse_flags
from flax import nnx
from provenance import provenance

from helios_jax.checkpoints.random import random_network
from helios_jax.config import PipelineConfig, SchedulerConfig, TextEncoderConfig, TransformerConfig, VaeConfig
from helios_jax.models import HeliosTransformer, Umt5Encoder, WanVae
from helios_jax.models.network import Network
from helios_jax.models.tokenization import encode_tokens, needed_keys
from helios_jax.models.vae import denormalize
from helios_jax.sampling.chunk import StepInfo
from helios_jax.sampling.decoding import decode_chunk
from helios_jax.sampling.noise import KeyNoise
from helios_jax.sampling.pipeline import HeliosPipeline

FRAMES = 33
REPEATS = 5

SIZES = {
    "14b": (TransformerConfig.helios_14b(), VaeConfig.wan_2_1(), TextEncoderConfig.umt5_xxl()),
    "1_3b": (TransformerConfig.wan_1_3b(), VaeConfig.wan_2_1(), TextEncoderConfig.umt5_xxl()),
    "tiny": (TransformerConfig.tiny(), VaeConfig.tiny(), TextEncoderConfig.tiny()),
}


def draws(seed: int) -> Callable[..., jax.Array]:
    """Draws parameters on the device, one program per shape."""
    keys = (jax.random.fold_in(jax.random.key(seed), index) for index in itertools.count())

    @functools.partial(jax.jit, static_argnums=(3, 4))
    def normal(key: jax.Array, mean: float, std: float, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return (mean + std * jax.random.normal(key, shape, dtype)).astype(dtype)

    return lambda mean, std, shape, dtype: normal(next(keys), mean, std, shape, dtype)


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
    """Collects figures, prints them and writes them to a file as they come."""

    out: Path
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        """Records one figure."""
        self.figures[name] = value
        print(f"{name:48s} {value:.2f}" if isinstance(value, float) else f"{name:48s} {value}", flush=True)
        self.out.write_text(json.dumps(self.figures, indent=1) + "\n")


def call_flop(config: TransformerConfig, history: int, current: int, text: int) -> float:
    """Floating-point operations of the products and the attention of one network call, without projecting the text."""
    tokens, dim = history + current, config.dim
    linear = tokens * (4 * dim + 2 * config.ffn_dim) + current * 2 * dim
    attention = 2 * tokens * tokens + 2 * current * text
    return 2.0 * config.num_layers * dim * (linear + attention)


def matmul_ceiling() -> float:
    """TFLOP/s of a large bf16 matrix product, repeated for about a second."""
    m, k, n = 11040, 5120, 13824
    a, b = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i, shape in enumerate(((m, k), (k, n))))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    repeats = 400
    out = None
    start = time.perf_counter()
    for _ in range(repeats):
        out = product(a, b)
    jax.block_until_ready(out)
    return 2 * m * k * n * repeats / (time.perf_counter() - start) / 1e12


def bench_peer(chunks: int) -> dict[str, Any]:
    """Figures of the PyTorch peer, in a process of its own, since both need the device's memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "peer.json"
        script = Path(__file__).with_name("peer_diffusers.py")
        done = subprocess.run([sys.executable, script, f"--chunks={chunks}", f"--out={out}"], check=False)
        figures = json.loads(out.read_text()) if out.exists() else {}
    if done.returncode:
        print(f"the peer ended with exit status {done.returncode}; figures so far are kept", flush=True)
    return figures


def bench_parts(pipe: HeliosPipeline, embeds: jax.Array, height: int, width: int, report: Report) -> jax.Array:
    """Measures network calls per level and the VAE decode; returns the latents of a chunk."""
    times: dict[int, list[float]] = collections.defaultdict(list)

    def on_step(info: StepInfo) -> None:
        # Wait only after the first and the last call: between them, calls follow each other without the host, as in a
        # chunk. The first call includes the transition into the level and is not counted.
        if info.step in (0, info.steps - 1):
            jax.block_until_ready(info.latents)
            times[info.level].append(time.perf_counter())

    levels = pipe.scheduler.num_levels
    steps = (1 + REPEATS,) * levels if levels > 1 else 1 + REPEATS
    arguments = {"height": height, "width": width, "steps": steps, "amplify_first_chunk": False}
    for _ in range(2):  # the first time compiles
        times.clear()
        start = time.perf_counter()
        chunk = next(pipe.stream(prompt_embeds=embeds, num_frames=FRAMES, on_step=on_step, **arguments))
        report.figures.setdefault("compile and first chunk, s", time.perf_counter() - start)
    report.add("compile and first chunk, s", report.figures["compile and first chunk, s"])
    means = [1e3 * (times[level][1] - times[level][0]) / REPEATS for level in range(levels)]
    for level, ms in enumerate(means):
        report.add(f"network call, level {level}, ms", ms)
    report.add("network calls, sum of levels, ms", sum(means))
    if levels == 3 and (height, width) == (384, 640):
        config = pipe.transformer.config
        flop = sum(call_flop(config, 2400, current, needed_keys(embeds)) for current in (540, 2160, 8640))
        rate, ceiling = flop / sum(means) / 1e9, matmul_ceiling()
        report.add("network calls, TFLOP/s", rate)
        report.add("large matrix product, TFLOP/s", ceiling)
        report.add("network calls, share of it", rate / ceiling)
    latents = jnp.asarray(chunk.latents)
    ms, seconds = milliseconds(lambda: decode_chunk(pipe.vae, latents))
    report.add("VAE decode, 33 frames, ms", ms)
    report.add("VAE decode, compile, s", seconds)
    return latents


def vae_psnr(vae: Network[WanVae], latents: jax.Array) -> float:
    """PSNR in dB of the decoded uint8 frames against the pixels that the same weights give in full fp32."""
    config = vae.config
    exact = functools.partial(WanVae, config, dtype=jnp.float32, precision=jax.lax.Precision.HIGHEST)
    graph, _ = nnx.split(nnx.eval_shape(lambda: exact(rngs=nnx.Rngs(0))))
    params = jax.tree.map(lambda x: x.astype(jnp.float32), vae.params)

    # It runs once: trying algorithms for it would take minutes.
    untuned = {"xla_gpu_autotune_level": 0, "xla_gpu_experimental_enable_fusion_autotuner": False}

    @functools.partial(jax.jit, compiler_options=untuned)
    def decode(network: Network[WanVae], latents: jax.Array) -> jax.Array:
        return network.module.decode(denormalize(config, latents), 3)

    pixels = jnp.clip(decode(Network(graph=graph, params=params), latents), -1, 1)
    error = decode_chunk(vae, latents) - 127.5 * (pixels + 1)
    return float(10 * jnp.log10(255**2 / jnp.mean(error**2)))


def bench_text_encoder(config: TextEncoderConfig, report: Report) -> None:
    """Measures the encoding of one prompt of 512 tokens."""
    encoder = random_network(Umt5Encoder, config, "bfloat16", draws(2))
    ids, mask = jnp.ones((1, 512), jnp.int32), jnp.ones((1, 512), bool)
    ms, seconds = milliseconds(lambda: encode_tokens(encoder, ids, mask))
    report.add("text encoder, 512 tokens, ms", ms)
    report.add("text encoder, compile, s", seconds)


def bench_stream(
    pipe: HeliosPipeline, embeds: jax.Array, height: int, width: int, steps: Any, num_chunks: int, report: Report
) -> None:
    """Measures the first chunk and the steady state end to end."""
    for run in ("cold", "warm"):
        stream = pipe.stream(
            prompt_embeds=embeds,
            num_frames=FRAMES * num_chunks,
            height=height,
            width=width,
            steps=steps,
            amplify_first_chunk=False,
            lookahead=1,
            noise=KeyNoise(key=jax.random.key(1)),
        )
        seconds = [chunk.seconds for chunk in stream]
        if run == "warm":
            report.add(f"steps {steps}: first chunk, s", seconds[0])
            report.add(f"steps {steps}: frames per second", FRAMES / statistics.median(seconds[2:]))


def main(args: argparse.Namespace) -> None:
    """Runs everything."""
    peer = bench_peer(args.chunks) if args.peer else {}
    report = Report(out=args.out, figures={"run": provenance()})
    device = jax.devices()[0]
    report.add("device", device.device_kind)
    report.add("jax", jax.__version__)
    transformer, vae, text = SIZES[args.size]
    scheduler = SchedulerConfig.distilled()
    pipe = HeliosPipeline(
        config=PipelineConfig(is_distilled=True),
        scheduler=scheduler,
        transformer=random_network(HeliosTransformer, transformer, "bfloat16", draws(0)),
        vae=random_network(WanVae, vae, args.vae_dtype, draws(1)),
    )
    embeds = jax.random.normal(jax.random.key(3), (1, 512, transformer.text_dim), jnp.bfloat16)
    embeds = embeds.at[:, args.prompt_tokens :].set(0)
    jax.block_until_ready(jax.tree.leaves(pipe.transformer))
    report.add("tokens of the prompt", args.prompt_tokens)
    report.add("parameters of the transformer", sum(x.size for x in jax.tree.leaves(pipe.transformer)))
    if args.text_encoder:
        bench_text_encoder(text, report)
    latents = bench_parts(pipe, embeds, args.height, args.width, report)
    for steps in args.steps:
        bench_stream(pipe, embeds, args.height, args.width, steps, args.chunks, report)
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        report.add("peak device memory, GB", stats["peak_bytes_in_use"] / 1e9)
    report.add("VAE decode, PSNR to fp32, dB", vae_psnr(pipe.vae, latents))
    if peer:
        print(f"\n{'':48s}{'helios_jax':>12s}{'diffusers':>12s}")
        for name in [name for name in report.figures if name in peer]:
            print(f"{name:48s}{report.figures[name]:12.2f}{peer[name]:12.2f}")
    report.add("peer", peer)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse_flags.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="14b")
    parser.add_argument(
        "--steps", action="append", type=lambda text: tuple(map(int, text.split(","))), help="may be repeated"
    )
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--prompt_tokens", type=int, default=100, help="the rest, to 512, is padding")
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--vae_dtype", default="bfloat16")
    parser.add_argument("--text_encoder", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=None, help="by default if installed")
    parser.add_argument("--out", type=Path, default=Path("inference.json"))
    args = parser.parse_args(argv[1:])
    args.steps = args.steps or [(1, 1, 1), (2, 2, 2)]
    if args.peer is None:
        args.peer = args.size == "14b" and all(map(importlib.util.find_spec, ("torch", "diffusers")))
    return args


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
