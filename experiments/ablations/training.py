"""Trains the phases of a row, from products that rows share.

    <out>/shared/parts          VAE and tokenizer, which no row trains
    <out>/shared/latents        encoded scenes
    <out>/shared/trajectories   those of the baseline, for the row ``ode``
    <out>/<row>/<phase>         a training; its product is in product/<steps>

A phase is trained unless its product exists: the product alone, which has files of at most 16 MB at the size
helios_tiny, carries a row from one machine to the next.
"""

import argparse
from pathlib import Path

from helios_jax.evaluation.moving_shapes import SIZE
from helios_jax.experiments.ablations.costs import full_resolution_steps
from helios_jax.experiments.ablations.measure import TOKENS
from helios_jax.experiments.ablations.rows import Phase, Row
from helios_jax.experiments.tiny_commands import encode_scenes, record_trajectories, train_on, train_vae
from helios_jax.experiments.train_tiny import SIZES, scene_flags, text_flags

LATENT = (SIZE // 8, SIZE // 8)
"""Latent rows and columns of the small world."""


def train_row(args: argparse.Namespace, row: Row) -> Path:
    """Trains the phases of a row that have no product; returns the last product."""
    product = None
    for phase in row.phases:
        product = train_phase(args, phase)
    assert product is not None, "a row has at least one phase"
    return product


def train_phase(args: argparse.Namespace, phase: Phase) -> Path:
    """Trains one phase unless its product exists; returns the product."""
    product = product_of(args, phase.run)
    if product.exists():
        print(f"# {product} exists", flush=True)
        return product
    flags, batch = _flags(args, phase), args.batch
    if phase.experiment == "stage3_ode.py":
        batch = 3 * -(-batch // 3)  # every video is three samples, one for each chunk
    size = f"{phase.experiment}:{SIZES[args.size]}"
    warmup = phase.name != "distill"  # the generator makes one update in five steps
    return train_on(args, size, phase.run, steps_of(args, phase.run), *flags, batch=batch, warmup=warmup)


def product_of(args: argparse.Namespace, run: str) -> Path:
    """Where the product of a run is, once it is trained."""
    return args.out / run / "product" / str(steps_of(args, run))


def steps_of(args: argparse.Namespace, run: str) -> int:
    """Steps that a run trains for."""
    name = run.rpartition("/")[2]
    if name == "full":
        return full_resolution_steps(SIZES[args.size], args.stage2_steps, LATENT, TOKENS, args.batch)
    return getattr(args, f"{name}_steps")


def _flags(args: argparse.Namespace, phase: Phase) -> tuple[str, ...]:
    """The flags of a phase: data, start, scores, and what makes the row a variant."""
    shared, parts = args.out / "shared", args.parts or args.out / "shared" / "parts"
    data, common = scene_flags(args, shared, parts)
    flags = data
    if phase.experiment == "stage3_ode.py":
        trajectories = record_trajectories(_in(args, shared), product_of(args, phase.start))
        flags = (f"--config.data.folders={(str(trajectories),)}", *common)
    if phase.start:
        flags += (f"--config.start.folder={product_of(args, phase.start)}",)
    else:
        flags += text_flags(args.style, "words")
    if phase.score:
        flags += (f"--config.method.score.folder={product_of(args, phase.score)}",)
        flags += text_flags(args.style, "method.tokens")
    if "gan" in phase.experiment:
        flags += (f"--config.method.gan.start_step={args.distill_steps // 2}",)
    if phase.experiment.startswith("stage3"):
        flags += ("--config.validation=none",)  # rows are measured at their end
    return flags + phase.flags


def prepare_shared(args: argparse.Namespace) -> None:
    """Trains the VAE, unless there is one, and encodes the scenes."""
    shared = _in(args, args.out / "shared")
    parts = args.parts or shared.out / "parts"
    if not parts.exists():
        train_vae(shared, parts)
    encode_scenes(shared, parts)


def needs_scenes(args: argparse.Namespace, row: Row) -> bool:
    """Whether a phase of the row is still to be trained."""
    return not all(product_of(args, phase.run).exists() for phase in row.phases)


def _in(args: argparse.Namespace, folder: Path) -> argparse.Namespace:
    """The arguments with another folder to write."""
    return argparse.Namespace(**vars(args) | {"out": folder})
