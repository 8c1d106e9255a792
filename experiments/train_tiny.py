"""Everything from nothing, on a CPU: a VAE, a data set, stages 1 and 2, videos and their scores.

    python -m experiments.train_tiny --out=runs/tiny          (make train-tiny)

    1  a small VAE is trained on the world of moving shapes         <out>/vae_images, <out>/vae
    2  its scenes are encoded by helios-prepare                     <out>/latents
    3  stage 1: a small transformer and text encoder learn them     <out>/stage1
    4  stage 2: they learn the pyramid                              <out>/stage2
    5  captions of new scenes become videos, which are scored       <out>/samples, <out>/scores.json

Each step is one of the commands that the large models are trained with, printed before it runs. An interrupted run goes
on when it is started again. The score of a video is the part of what its caption says (colour, kind, size, speed and
direction of each shape, their number, background, light) that can be recovered from its pixels; beside it stands the
score of the same scene after a pass through the VAE, which bounds it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, logging
from absl.flags import argparse_flags

HERE = Path(__file__).parent
SIZE = 64
FRAMES = 66


def command(program: str, main: Callable[[Any], int], *arguments: str, parse: Callable | None = None) -> None:
    """Prints a command line and runs it here. Raises SystemExit with its exit code unless that is 0."""
    line = [program, *arguments]
    print("$", " ".join(line), flush=True)
    status = main(parse(line) if parse else line)
    if status:
        sys.exit(status)


def newest(folder: Path) -> Path:
    """The product of a run's last step."""
    return max((folder / "product").iterdir(), key=lambda path: int(path.name))


def write_parts(vae: Path, parts: Path) -> None:
    """A checkpoint with what stages 1 and 2 do not train: the VAE, and a tokenizer of single characters."""
    import shutil

    from helios_jax.checkpoints.random import write_character_tokenizer

    shutil.rmtree(parts, ignore_errors=True)
    shutil.copytree(vae / "vae", parts / "vae")
    write_character_tokenizer(parts)


def sample_and_score(pipeline: Path, out: Path, count: int) -> dict[str, float]:
    """Writes a video for each of ``count`` new captions and returns the mean scores."""
    import numpy as np

    from data.moving_shapes import MovingShapes, score
    from helios_jax.sampling.pipeline import HeliosPipeline
    from helios_jax.training.validation import write_clip

    pipe = HeliosPipeline.from_pretrained(pipeline, dtype="float32", vae_dtype="float32")
    scenes = MovingShapes(seed=1, size=count, frames=FRAMES, height=SIZE, width=SIZE)
    rows = []
    for number in range(count):
        caption, frames = scenes[number]["caption"], scenes[number]["frames"]
        video = pipe(
            caption,
            num_frames=FRAMES,
            height=SIZE,
            width=SIZE,
            guidance_scale=1.0,
            max_text_tokens=384,
            seed=number,
            progress=False,
        ).frames[0]
        again = through_vae(pipe, frames)
        sampled, bound = (score(clip, caption) for clip in (video, again))
        rows.append({"caption": caption, "sampled": sampled.value, "vae": bound.value, "recovered": sampled.recovered})
        sheet = np.concatenate([clip[: len(video)] for clip in (frames, again, video)], axis=2)
        write_clip(out / f"{number}.mp4", sheet, 24)
        print(f"{number}: {sampled.value:.2f} (its scene through the VAE: {bound.value:.2f}) {caption}", flush=True)
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("sampled", "vae", "recovered")}
    (out.parent / "scores.json").write_text(json.dumps({"mean": means, "videos": rows}, indent=2) + "\n")
    return means


def through_vae(pipe: Any, frames: Any) -> Any:
    """Chunks of 33 frames, encoded and decoded."""
    import jax.numpy as jnp
    import numpy as np

    from helios_jax.training.validation import reconstruct

    chunks = frames[: len(frames) // 33 * 33].reshape(-1, 33, *frames.shape[1:])
    return np.concatenate([np.asarray(reconstruct(pipe.vae, jnp.asarray(chunk[None])))[0] for chunk in chunks])


def main(args: argparse.Namespace) -> int:
    """Runs the steps."""
    logging.set_verbosity(logging.WARNING)
    from helios_jax import prepare, train

    out = args.out
    vae, parts, latents = out / "vae", out / "parts", out / "latents"

    def train_on(experiment: str, workdir: Path, steps: int, *overrides: str) -> None:
        config = f"--config={HERE / experiment}"
        command("helios-train", train.main, config, f"--workdir={workdir}", f"--config.steps={steps}", *overrides)

    train_on("tiny_vae.py:images", out / "vae_images", args.image_steps)
    images = f"--config.start.folder={newest(out / 'vae_images')}"
    train_on("tiny_vae.py:videos", vae, args.clip_steps, images)
    if not parts.exists():
        write_parts(newest(vae), parts)
    command(
        "helios-prepare",
        prepare.main,
        f"--model={parts}",
        f"--moving_shapes={args.scenes}",
        f"--sizes={SIZE}x{SIZE}",
        "--max_frames=132",
        "--no-text",
        f"--out={latents}",
        parse=prepare.parse,
    )
    data = (f"--config.data.folders=({str(latents)!r},)", f"--config.data.tokenizer={parts}")
    parts_of = f"--config.product.parts={parts}"
    train_on("stage1_init.py:tiny", out / "stage1", args.steps, *data, parts_of)
    start = f"--config.start.folder={newest(out / 'stage1')}"
    train_on("stage2_init.py:tiny", out / "stage2", args.steps, *data, parts_of, start)
    means = sample_and_score(newest(out / "stage2"), out / "samples", args.videos)
    print(f"mean score {means['sampled']:.3f}; through the VAE alone {means['vae']:.3f}; see {out / 'samples'}")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse_flags.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder to write (default runs/tiny)")
    parser.add_argument("--image_steps", type=int, default=3000, help="steps of the VAE on images (default 3000)")
    parser.add_argument("--clip_steps", type=int, default=600, help="steps of the VAE on clips (default 600)")
    parser.add_argument("--steps", type=int, default=600, help="steps of each stage (default 600)")
    parser.add_argument("--scenes", type=int, default=256, help="scenes to encode (default 256)")
    parser.add_argument("--videos", type=int, default=4, help="videos to sample and score (default 4)")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=_parse))
