"""Time from weights on the device to the first chunk, without and with compiled programs on disk.

    python benchmarks/startup.py --out=startup.json

Two processes, one after the other, share a new cache folder; 14B, bf16, 384x640, random weights, one step per level.
Importing packages and drawing the weights is not counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from provenance import provenance


def first_chunk(size: str) -> dict[str, float]:
    """Seconds until the frames of the first chunk are on the host, and of the second, in this process."""
    from helios_jax.compilation import use_compilation_caches

    use_compilation_caches(Path(sys.argv[-1]))

    import jax
    import jax.numpy as jnp
    from inference import FRAMES, SIZES, draws

    import helios_jax as hx
    from helios_jax.checkpoints.random import random_network
    from helios_jax.config import PipelineConfig, SchedulerConfig
    from helios_jax.models import HeliosTransformer, WanVae

    transformer, vae, _ = SIZES[size]
    pipe = hx.HeliosPipeline(
        config=PipelineConfig(is_distilled=True),
        scheduler=SchedulerConfig.distilled(),
        transformer=random_network(HeliosTransformer, transformer, "bfloat16", draws(0)),
        vae=random_network(WanVae, vae, "bfloat16", draws(1)),
    )
    embeds = jax.random.normal(jax.random.key(3), (1, 512, transformer.text_dim), jnp.bfloat16).at[:, 100:].set(0)
    jax.block_until_ready((jax.tree.leaves(pipe.transformer), jax.tree.leaves(pipe.vae), embeds))
    start = time.perf_counter()
    stream = pipe.stream(prompt_embeds=embeds, num_frames=2 * FRAMES, steps=(1, 1, 1), amplify_first_chunk=False)
    seconds = []
    for chunk in stream:
        assert chunk.frames is not None
        seconds.append(time.perf_counter() - start)
    return {"first chunk, s": seconds[0], "second chunk, s": seconds[1] - seconds[0]}


def main(args: argparse.Namespace) -> None:
    """Runs both processes, or acts as one of them."""
    if args.one:
        args.out.write_text(json.dumps(first_chunk(args.size)))
        return
    report = {"run": provenance()}
    with tempfile.TemporaryDirectory() as folder:
        for process in ("first process", "second process"):
            out = Path(folder) / "figures.json"
            command = [
                sys.executable,
                __file__,
                "--one",
                f"--size={args.size}",
                f"--out={out}",
                str(args.cache or folder),
            ]
            subprocess.run(command, check=True)
            report[process] = json.loads(out.read_text())
            print(process, report[process], flush=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("14b", "tiny"), default="14b")
    parser.add_argument("--cache", type=Path, help="folder to use instead of a fresh one")
    parser.add_argument("--out", type=Path, default=Path("startup.json"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", help=argparse.SUPPRESS)
    main(parser.parse_args())
