"""Speed and memory of a training step of the 14B model with random weights drawn on the device.

    python benchmarks/training.py --out=training.json

Stage 1 as published: LoRA of rank 128 on every linear layer, history patchers in full, AdamW, 384x640; at batch sizes 1
and 2. Stage 2: the packed step, levels 1:2:1, LoRA of rank 256, batch 1. The backward pass recomputes blocks from what
``--remat`` keeps (see helios_jax/parallel/memory.py). Figures are the median seconds of steps after the first, which
compiles, and the peak of device memory, each case in a process of its own. With torch, diffusers and peft installed,
``peer_training.py`` runs on the same device first.
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from provenance import provenance

from helios_jax.parallel.memory import Remat

CASES = {"stage 1, batch 1": ("stage1_init", 1), "stage 1, batch 2": ("stage1_init", 2), "stage 2": ("stage2_init", 1)}
STEPS = 5


def measure(case: str, remat: str, size: str, show_profile: bool) -> dict[str, float]:
    """Measures one case in this process."""
    import jax
    import jax.numpy as jnp
    from device_profile import profile
    from inference import SIZES, draws

    from helios_jax.checkpoints.random import random_network
    from helios_jax.models import HeliosTransformer
    from helios_jax.training.batch import LatentBatch, PromptBatch
    from helios_jax.training.descent import PLAYER, procedure_of
    from helios_jax.training.networks import Networks
    from helios_jax.training.overrides import frozen

    name, batch_size = CASES[case]
    experiment = frozen(importlib.import_module(f"helios_jax.experiments.{name}").get_config("14b"))
    experiment = dataclasses.replace(experiment, remat=remat, batch_size=batch_size)
    config = SIZES[size][0]

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Drawn:
        """A transformer with random weights."""

        def networks(self, mesh: jax.sharding.Mesh, key: jax.Array) -> Networks:
            return Networks(transformer=random_network(HeliosTransformer, config, "bfloat16", draws(0)).module)

    experiment = dataclasses.replace(experiment, start=Drawn())
    running = procedure_of(experiment).start(experiment, experiment.mesh.build(), None)
    count = sum(array.size for array in running.items()[PLAYER]["trainable"].values())

    def normal(seed: int, *shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), (batch_size, *shape), jnp.bfloat16)

    height, width = (48, 80) if size == "14b" else (16, 16)
    batch = LatentBatch(
        target=normal(2, 9, height, width, 16),
        history=normal(3, 19, height, width, 16),
        anchor=normal(4, 1, height, width, 16),
        text=PromptBatch(embeds=normal(5, 512, config.text_dim)),
    )
    flops = running.flops(batch)

    def run() -> float:
        return float(running.step(batch, len(losses) + 1)["loss"])

    seconds, losses = [], []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        losses.append(run())
        seconds.append(time.perf_counter() - start)
    if show_profile:
        for row in profile(run, repeats=1)[:60]:
            print(f"{row.ms:9.2f} ms {row.launches:6.0f} x {row.op:44s} {row.kernel}")
    stats = jax.devices()[0].memory_stats() or {}
    median = statistics.median(seconds[1:])
    return {
        "seconds": median,
        "compile and first step, s": seconds[0],
        "peak memory, GB": stats.get("peak_bytes_in_use", 0) / 1e9,
        "TFLOP/s without what is computed again": (flops or 0) * batch_size / median / 1e12,
        "trained parameters": count,
        "loss": losses[-1],
    }


def run_apart(script: Path, *arguments: str) -> dict[str, Any]:
    """Figures of a script that writes them to ``--out``, in a process of its own; {} if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        done = subprocess.run([sys.executable, script, f"--out={out}", *arguments], check=False)
        figures = json.loads(out.read_text()) if out.exists() else {}
    if done.returncode:
        print(f"{script.name} {' '.join(arguments)} ended with exit status {done.returncode}", flush=True)
    return figures


def main(args: argparse.Namespace) -> None:
    """Runs one case, or all of them and the peer, one process each."""
    if args.case:
        args.out.write_text(json.dumps(measure(args.case, args.remat, args.size, args.profile), indent=1) + "\n")
        return
    here = Path(__file__)
    report: dict[str, Any] = {"run": provenance()}
    if args.peer:
        report["peer"] = run_apart(here.with_name("peer_training.py"))
    for case in CASES:
        report[case] = run_apart(here, f"--case={case}", f"--remat={args.remat}", f"--size={args.size}")
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        peer = report.get("peer", {}).get(case, {})
        for name, value in report[case].items():
            comparison = f"   peer {peer[name]:.2f}" if name in peer else ""
            print(f"{case:20s}{name:32s}{value:16.2f}{comparison}", flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="only this one, in this process")
    parser.add_argument("--remat", default="offload", choices=get_args(Remat))
    parser.add_argument("--profile", action="store_true", help="with --case: print where the device's time goes")
    parser.add_argument("--size", choices=("14b", "tiny"), default="14b")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=None, help="by default if installed")
    parser.add_argument("--out", type=Path, default=Path("training.json"))
    args = parser.parse_args(argv)
    if args.peer is None:
        args.peer = args.size == "14b" and all(map(importlib.util.find_spec, ("torch", "diffusers", "peft")))
    return args


if __name__ == "__main__":
    main(parse())
