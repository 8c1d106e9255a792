"""The commands of train_tiny.py: one function for each kind of work, with the arguments of train_tiny.py."""

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helios_jax import prepare, train
from helios_jax.data.moving_shapes.styles import CAPTION_TOKENS, Style
from helios_jax.evaluation.moving_shapes import CHUNK, FRAMES, SIZE
from helios_jax.safe_files import replace_text

HERE = Path(__file__).parent
SETS = ("videos", "starts")
"""Data sets: scenes as whole videos, and the first chunks of others. They are the worlds 0 and 1."""

PROMPTS_WORLD = 9
"""Seed of the scenes whose captions are recorded; evaluations have others too."""

TEACHER_GUIDANCE = 2
"""Guidance of the teacher, as in the experiments of stage 3."""


def command(program: str, main: Callable[[Any], int], *arguments: str, parse: Callable | None = None) -> None:
    """Prints a command line, quoted for a shell, runs it here and prints its seconds.

    Raises:
        SystemExit: Its exit code is not 0.
    """
    line = [program, *arguments]
    print("$", shlex.join(line), flush=True)
    start = time.perf_counter()
    if status := main(parse(line) if parse else line):
        sys.exit(status)
    print(f"# {program}: {time.perf_counter() - start:.1f} s", flush=True)


def newest(run: Path) -> Path:
    """The product of a run's last step."""
    return max((run / "product").iterdir(), key=lambda path: int(path.name))


def write_parts(vae: Path, parts: Path, style: Style = "plain") -> None:
    """Writes a checkpoint of the parts that stages 1 and 2 do not train: the VAE, and a tokenizer for captions."""
    from helios_jax.checkpoints.random import write_word_tokenizer
    from helios_jax.data.moving_shapes import vocabulary

    partial = parts.with_name(f"{parts.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(vae / "vae", partial / "vae")
    write_word_tokenizer(partial, vocabulary(absences=style == "textured"))
    partial.rename(parts)


def train_on(
    args: argparse.Namespace,
    experiment: str,
    run: str,
    steps: int,
    *overrides: str,
    batch: int = 0,
    warmup: bool = True,
) -> Path:
    """Trains an experiment in the folder ``run`` unless its product exists; returns the product."""
    product = args.out / run / "product" / str(steps)
    if product.exists():
        print(f"# {product} exists", flush=True)
        return product
    config = [f"--config={HERE / experiment}", f"--workdir={args.out / run}", f"--config.steps={steps}"]
    if warmup:
        config.append(f"--config.optimizer.warmup_steps={steps // 20}")
    if batch := batch or args.batch:
        config.append(f"--config.batch_size={batch}")
    command("helios-train", train.main, *config, *overrides)
    return newest(args.out / run)


def train_vae(args: argparse.Namespace, parts: Path) -> None:
    """Trains the VAE and writes the parts that stages 1 to 3 do not train."""
    kind = {"cpu": "", "gpu": "gpu_", "helios_tiny": "helios_tiny_"}[args.size]
    world = [f"--config.data.num_shapes={args.num_shapes}"]
    if args.style != "plain":
        world += [f"--config.data.style={args.style}", f"--config.product.clips.style={args.style}"]
    images = train_on(args, f"tiny_vae.py:{kind}images", "vae_images", args.image_steps, *world)
    start = f"--config.start.folder={images}"
    trained = train_on(args, f"tiny_vae.py:{kind}clips", "vae", args.clip_steps, *world, start)
    write_parts(trained, parts, args.style)


def encode_scenes(args: argparse.Namespace, parts: Path) -> None:
    """Encodes the data sets."""
    lengths, counts = (args.clip_chunks * CHUNK, CHUNK), (args.scenes, args.starts)
    for world, (name, frames, scenes) in enumerate(zip(SETS, lengths, counts, strict=True)):
        command(
            "helios-prepare",
            prepare.main,
            f"--model={parts}",
            f"--moving_shapes={scenes}",
            f"--seed={world}",
            *([f"--num_shapes={args.num_shapes}"] if args.num_shapes else []),
            *([f"--style={args.style}"] if args.style != "plain" else []),
            f"--sizes={SIZE}x{SIZE}",
            f"--min_frames={frames}",
            f"--max_frames={frames}",
            "--no-text",
            f"--batch={args.encode_batch}",
            f"--clips_per_file={max(64, scenes // 2)}",
            *(["--vae_dtype=bfloat16", "--processes", f"--readers={os.cpu_count()}"] if args.size != "cpu" else []),
            f"--out={args.out / 'latents' / name}",
            parse=prepare.parse,
        )


def record_trajectories(args: argparse.Namespace, teacher: Path | None) -> Path:
    """Records trajectories of the teacher for the captions of new scenes; returns the data set's folder."""
    from helios_jax.data.moving_shapes import caption, sample_scene

    folder, count = args.out / "trajectories", args.trajectories
    world = {"num_shapes": args.num_shapes or None, "style": args.style}
    captions = [caption(sample_scene(PROMPTS_WORLD, i, **world)) for i in range(count)]
    prompts = args.out / "captions.txt"
    replace_text(prompts, "\n".join(captions) + "\n")
    command(
        "helios-prepare",
        prepare.main,
        f"--model={teacher}",
        f"--prompts={prompts}",
        "--negative_prompt=",
        "--no-text",
        f"--sizes={SIZE}x{SIZE}",
        f"--chunks={FRAMES // CHUNK}",
        f"--guidance_scale={TEACHER_GUIDANCE}",
        f"--max_text_tokens={CAPTION_TOKENS[args.style]}",
        f"--batch={args.encode_batch}",
        f"--clips_per_file={max(8, count // 16)}",
        f"--dtype={'float32' if args.size == 'cpu' else 'bfloat16'}",
        f"--out={folder}",
        parse=prepare.parse,
    )
    return folder
