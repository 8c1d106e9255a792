"""Makes a trained student the checkpoint that comes with the package: helios-tiny.

    python -m helios_jax.experiments.ship_tiny --product=runs/helios_tiny/gan/product/1500

It writes ``helios_jax/weights/helios-tiny``, or the folder ``--out``: transformer, VAE and text encoder in bfloat16
(what is published in fp32 only stays fp32), tokenizer, scheduler and index in the published layout, ``sampling.json``
with the size that the model was trained at, and a model card. Before the folder gets its name,

    1  every weight is checked to be finite in bfloat16
    2  the folder is loaded with dtype "auto" and sampled, and so is the product in float32; the card says how far
       their frames differ
    3  the card is written, with scores from the files of the run (``tiny_card.py``)
    4  the files are checked to be those that are shipped, at most 16 MB each and 25 MB together

The product must be distilled: commands sample helios-tiny with 2 steps per level and no guidance. Afterwards
``tests/parity/record_shipped.py`` records what diffusers makes of the folder.
"""

import argparse
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.arguments import Parser, path
from helios_jax.checkpoints.new_folder import check_new_folder, new_folder
from helios_jax.checkpoints.settings import read_settings
from helios_jax.checkpoints.shipped import HELIOS_TINY, check_sizes, package_folder
from helios_jax.cli import run_interruptible, run_program
from helios_jax.compilation import use_compilation_caches
from helios_jax.config import SamplingDefaults
from helios_jax.data.moving_shapes import caption, sample_scene
from helios_jax.data.moving_shapes.styles import CAPTION_TOKENS, STYLES, Style
from helios_jax.experiments.tiny_card import Difference, card
from helios_jax.safe_files import replace_text
from helios_jax.sampling.pipeline import HeliosPipeline

PROGRAM = "ship_tiny"
SIZE = 64
CHUNKS = 4
"""Length of the videos that are compared, in chunks."""

FILES = {
    "README.md",
    "model_index.json",
    "sampling.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}
"""The files that are shipped."""


def ship(product: Path, target: Path, *, style: Style = "textured", commit: str = "", hardware: str = "") -> Difference:
    """Writes the shipped folder of a product, whole or not at all.

    Args:
        product: A distilled checkpoint, such as <run>/gan/product/1500.
        target: Folder to write; it must not exist or be empty.
        style: Style of the scenes that it was trained on.
        commit: Commit that trained it, for the card.
        hardware: What trained it and how long, for the card.

    Returns:
        How far the frames of the shipped weights differ from those of the product.

    Raises:
        FileNotFoundError: The product or a part of it is missing.
        FileExistsError: The target is not empty.
        FloatingPointError: A weight or a frame is not finite.
        ValueError: The product is not distilled or has no text encoder, or its files are too large.
    """
    check_new_folder(target, product)
    settings = read_settings(product)
    if not settings.config.is_distilled or settings.text_encoder is None:
        raise ValueError(
            f"{product} is not a distilled checkpoint with a text encoder; give the product of stage 3, such as "
            "<run>/gan/product/<steps>"
        )
    with new_folder(target) as folder:
        save_in_bfloat16(product, folder, style)
        found = difference(product, folder, style)
        replace_text(folder / "README.md", card(folder, product, found, commit=commit, hardware=hardware))
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        if files != FILES:
            raise ValueError(f"{product}: the files {sorted(files ^ FILES)} are missing or not expected")
        total = check_sizes(folder)
    print(f"wrote {target}: {len(FILES)} files, {total:,} bytes")
    return found


def save_in_bfloat16(product: Path, folder: Path, style: Style) -> None:
    """Writes everything but the card.

    Raises:
        FloatingPointError: A weight is not finite, or overflows.
    """
    pipe = HeliosPipeline.from_pretrained(product, dtype="bfloat16", vae_dtype="bfloat16")
    assert pipe.text_encoder is not None, "ship has checked it"
    networks = {"transformer": pipe.transformer, "vae": pipe.vae, "text_encoder": pipe.text_encoder.encoder}
    for name, network in networks.items():
        if not all(bool(jnp.isfinite(array).all()) for array in jax.tree.leaves(network.params)):
            raise FloatingPointError(f"the {name} of {product} has weights that are not finite in bfloat16")
    pipe.defaults = SamplingDefaults(height=SIZE, width=SIZE, max_text_tokens=CAPTION_TOKENS[style], style=style)
    pipe.save(folder)


def difference(product: Path, folder: Path, style: Style) -> Difference:
    """Samples one caption from the product in float32 and from the shipped folder in dtype "auto"."""
    shipped = HeliosPipeline.from_pretrained(folder, dtype="auto", vae_dtype="auto")
    original = HeliosPipeline.from_pretrained(product, dtype="float32", vae_dtype="float32")
    original.defaults = shipped.defaults
    prompt = caption(sample_scene(0, 0, style=style))

    def sample(pipe: HeliosPipeline) -> np.ndarray:
        out = pipe(prompt, num_frames=CHUNKS * pipe.chunk_frames, exact_frames=True, progress=False)
        return out.frames[0].astype(np.int16)

    error = np.abs(sample(shipped) - sample(original))
    return Difference(
        dtype=str(shipped.transformer.dtype),
        first_chunk=float(error[: shipped.chunk_frames].mean()),
        video=float(error.mean()),
        frames=len(error),
    )


def main(args: argparse.Namespace) -> int:
    """Ships a product; returns the exit code."""
    # The frames are compared in the dtype of CPUs, where the checkpoint is mostly used. Set before JAX starts.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    def work() -> None:
        use_compilation_caches()
        commit = args.commit or _commit()
        print(ship(args.product, args.out, style=args.style, commit=commit, hardware=args.hardware))
        print(f"next: python tests/parity/record_shipped.py {args.out}   (in the environment of diffusers)")

    return run_interruptible(PROGRAM, lambda _: work(), leaves="nothing is left of an unfinished folder")


def _commit() -> str:
    """The commit of this checkout; "" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ``argv[0]`` is the program."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--product", type=path("--product"), required=True, help="checkpoint of a student")
    out = package_folder() / HELIOS_TINY
    parser.add_argument("--out", type=path("--out"), default=out, help="folder to write (default: in the package)")
    parser.add_argument("--style", choices=STYLES, default="textured", help="scenes that it knows (default textured)")
    parser.add_argument("--commit", default="", help="commit that trained it (default: that of this checkout)")
    parser.add_argument("--hardware", default="", help="what trained it, such as 'one H100, 55 minutes', for the card")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    run_program(PROGRAM, main, parse)
