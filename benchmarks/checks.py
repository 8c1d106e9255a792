"""The cost of checks: whether chunks are finite, and digests of checkpoints; 14B with random weights.

    python benchmarks/checks.py --out=checks.json

Sampling: streams with steps (1, 1, 1), where the relative cost of checks is largest, alternately with the checks of
``sampling.finite`` and with a constant instead of them and a decoder without a check. Figures are the median seconds of
a chunk, without the first two of each stream, over all repetitions. Training: seconds for the digests of everything in
a checkpoint of stage 1, needed once per checkpoint, and of the frozen weights, needed once at the start of a run.
"""

import argparse
import contextlib
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from device_profile import profile
from inference import FRAMES, SIZES, draws
from provenance import provenance

from helios_jax.checkpoints.digests import digests_of
from helios_jax.checkpoints.random import random_network
from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.models import HeliosTransformer, WanVae
from helios_jax.models.network import Network
from helios_jax.models.vae import decode_frames
from helios_jax.sampling import chunk as chunk_module
from helios_jax.sampling import producer
from helios_jax.sampling.pipeline import HeliosPipeline

TURNS = 4
CHUNKS = 8


@jax.jit
def _decode(vae: Network[WanVae], latents: jax.Array) -> jax.Array:
    return decode_frames(vae.module, latents, None)


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    """Sampling as it would be without the checks: verdicts are one constant, and the decoder computes none."""
    finite = jnp.ones((), bool)

    def decode_only(vae: Any, latents: Any, *, slice_frames: int | None = None) -> tuple[Any, Any]:
        return _decode(vae, latents), finite

    with (
        mock.patch.object(chunk_module, "all_finite", return_value=finite),
        mock.patch.object(producer, "decode_and_check", decode_only),
    ):
        yield


def chunk_seconds(pipe: HeliosPipeline, **arguments: Any) -> list[float]:
    """Seconds of the chunks of a stream, without the first two."""
    return [chunk.seconds for chunk in pipe.stream(num_frames=CHUNKS * FRAMES, lookahead=1, **arguments)][2:]


def bench_sampling(size: str) -> dict[str, Any]:
    """Chunks with and without checks, alternately, and the device time of the check of the largest level."""
    transformer, vae, _ = SIZES[size]
    pipe = HeliosPipeline(
        config=PipelineConfig(is_distilled=True),
        scheduler=SchedulerConfig.distilled(),
        transformer=random_network(HeliosTransformer, transformer, "bfloat16", draws(0)),
        vae=random_network(WanVae, vae, "bfloat16", draws(1)),
    )
    height, width = (384, 640) if size == "14b" else (64, 64)
    embeds = jax.random.normal(jax.random.key(3), (1, 512, transformer.text_dim), jnp.bfloat16).at[:, 100:].set(0)
    run = functools.partial(
        chunk_seconds,
        pipe,
        prompt_embeds=embeds,
        height=height,
        width=width,
        steps=(1, 1, 1),
        amplify_first_chunk=False,
    )
    checked, plain = [], []
    with without_checks():
        run()  # compiles
    run()
    for _ in range(TURNS):
        checked += run()
        with without_checks():
            plain += run()
    latents = jnp.ones((1, 9, height // 8, width // 8, vae.z_dim))
    rows = profile(lambda: chunk_module.all_finite(latents))
    seconds, without = statistics.median(checked), statistics.median(plain)
    return {
        "chunk with checks, s": seconds,
        "chunk without, s": without,
        "difference, %": 100 * (seconds / without - 1),
        "spread of chunks without, %": 100 * (max(plain) - min(plain)) / without,
        "check of the latents of level 2, kernels, us": 1e3 * sum(row.ms for row in rows),
    }


def seconds_of(call: Callable[[], Any]) -> float:
    """Median of three calls after one that compiles."""
    call()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bench_digests(size: str) -> dict[str, Any]:
    """Digests of what a checkpoint of stage 1 holds (parameters and moments of a LoRA), and of the frozen weights."""
    transformer, _, _ = SIZES[size]
    weights = {
        f"frozen/{number}": array
        for number, array in enumerate(
            jax.tree.leaves(random_network(HeliosTransformer, transformer, "bfloat16", draws(0)).params)
        )
    }
    # 647.7M trained parameters in fp32, three arrays each: the weights and both moments.
    trained = 647_700_000 if size == "14b" else 100_000
    items = {f"trained/{number}": jnp.full((trained // 100, 100), number, jnp.float32) for number in range(3)}
    jax.block_until_ready((weights, items))
    return {
        "digests of a checkpoint, s": seconds_of(lambda: digests_of(items)),
        "bytes of the checkpoint, GB": sum(array.nbytes for array in items.values()) / 1e9,
        "digests of the frozen weights, s": seconds_of(lambda: digests_of(weights)),
        "bytes of the frozen weights, GB": sum(array.nbytes for array in weights.values()) / 1e9,
    }


def main() -> None:
    """Measures both and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="14b")
    parser.add_argument("--out", type=Path, default=Path("checks.json"))
    args = parser.parse_args()
    figures: dict[str, Any] = {"run": provenance()}
    for bench in (bench_sampling, bench_digests):
        figures |= bench(args.size)
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
