r"""Everything from nothing: a VAE, a data set, stages 1 and 2, videos and their scores.

    python -m helios_jax.experiments.train_tiny --out=runs/tiny                   # make train-tiny
    python -m helios_jax.experiments.train_tiny --size=gpu --out=runs/tiny_gpu    # 15 times the size

    1  a small VAE is trained on the world of moving shapes         <out>/vae_images, <out>/vae
    2  helios-prepare encodes scenes, most of them only up to       <out>/parts, <out>/latents
       the first chunk, which is the hardest to learn
    3  stage 1: a small transformer and text encoder learn them     <out>/stage1
    4  stage 2: they learn the pyramid                              <out>/stage2
    5  videos are sampled from captions of new scenes and scored    <out>/artefacts: scores, videos, curves

Cost and result on one CPU core, with --num_shapes=1, 1500 steps on images, two sets of 512 scenes and 3000 and 600
steps of the stages: 8 + 2 minutes for the VAE, 3 for the data, 28 and 14 for the stages, 1 for 32 videos. Through the
VAE 81 % of the colours, 72 % of the directions and 28 % of the kinds are recovered; the transformer follows light (30
of 32) and background (16 of 32), and rarely draws the shape (colour: 3 of 32). The defaults take a third of that time.

Cost and result on one H100, with --guidance=2,3,4 and XLA_FLAGS=--xla_gpu_enable_triton_gemm=false (fewer kernels to
autotune) at commit 5f36bde: 4.0 minutes for the VAE (39.4 dB on its last batches), 2.0 for the data, 8.9 and 13.0 for
the stages (7.8 and 11.0 of them in steps, the rest in compiling, reading and writing), 1.4 for the first 256 videos and
2 s for 256 more; 31.3 minutes in all. Peak memory 6.9 GiB. Recovered videos of 99 frames, from new captions:

    model     steps a level  guidance  of 256   1 shape, of 85   2 shapes, of 80   3 shapes, of 91
    the VAE, given the scene           255      85               80                90
    stage 2   10             3         249      85               77                87   (results/tiny_gpu)
    stage 2   20             2         246      85               78                83
    stage 2    6             2         245      85               78                82
    stage 2   10             2         241      85               77                79
    stage 2   10             4         212      75               69                68
    stage 1   30             2         239      85               75                79

The rows with 20 and 6 steps, and the videos sampled on an H200, come from

    python -m helios_jax.evaluation.moving_shapes --pipeline=runs/tiny_gpu/stage2/product/4000 \
        --out=runs/tiny_gpu/more_steps --videos=256 --batch=128 --steps=20,20,20 --guidance=2

With guidance 3 all 518 colours are right, 517 kinds and 512 directions; whether shapes bounce off the border or pass
through it is right for 473. On an H200 with 10 steps the same product gives the same 249 and 241. An earlier run with
--num_shapes=1, half the VAE and 5000 and 2000 steps (commit 4913285, H200, guidance 2) had 245 of 256.

Stage 1 by samples per step and learning rate, on H200s:

    samples a step  learning rate  steps    samples   loss   (*: 6144 whole videos, no further first chunks)
    256             1e-3            1 200     307k    0.169  *
    256             2e-3            1 200     307k    0.150  *
    128             1e-3            2 400     307k    0.145  *
    128             1.4e-3         12 000    1.54M    0.117
    256             1e-3            8 700    2.23M    0.087
    256             1e-3            9 000    2.30M    0.086  (the default; on an H100)
    256             1e-3           10 000    2.56M    0.085  (0.099 after 1.54M)

Each step is one of the commands that the large models are trained with, and is printed before it runs. Steps that are
done are not repeated: after an interruption the same command resumes. For the meaning of the scores see
helios_jax/evaluation/moving_shapes.py.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, logging

from helios_jax.arguments import Parser, path
from helios_jax.evaluation.moving_shapes import CHUNK, FRAMES, SIZE, Evaluation, integers, sample_and_score
from helios_jax.experiments.tiny_curves import write_curves

HERE = Path(__file__).parent
PHASES = ("vae", "latents", "stage1", "stage2", "videos")
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "image_steps": 1200,
        "clip_steps": 100,
        "scenes": 128,
        "starts": 256,
        "stage1_steps": 300,
        "stage2_steps": 200,
        "videos": 8,
        "encode_batch": 4,
    },
    "gpu": {
        "image_steps": 6000,
        "clip_steps": 1200,
        "scenes": 8192,
        "starts": 24576,
        "stage1_steps": 9000,
        "stage2_steps": 4000,
        "videos": 256,
        "encode_batch": 64,
    },
}
"""Settings by size, in addition to those of the experiments."""


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


def write_parts(vae: Path, parts: Path) -> None:
    """Writes a checkpoint of the parts that stages 1 and 2 do not train: the VAE, and a tokenizer for captions."""
    from helios_jax.checkpoints.random import write_word_tokenizer
    from helios_jax.data.moving_shapes import vocabulary

    partial = parts.with_name(f"{parts.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(vae / "vae", partial / "vae")
    write_word_tokenizer(partial, vocabulary())
    partial.rename(parts)


def main(args: argparse.Namespace) -> int:
    """Runs the phases."""
    logging.set_verbosity(logging.WARNING)
    from helios_jax import prepare, train
    from helios_jax.compilation import use_compilation_caches

    use_compilation_caches()
    out, gpu, start = args.out, args.size == "gpu", time.perf_counter()
    parts = out / "parts"
    wanted = PHASES[: PHASES.index(args.until) + 1]

    def train_on(experiment: str, run: str, steps: int, *overrides: str) -> None:
        if args.batch:
            overrides += (f"--config.batch_size={args.batch}",)
        config = (f"--config={HERE / experiment}", f"--workdir={out / run}", f"--config.steps={steps}")
        warmup = f"--config.optimizer.warmup_steps={steps // 20}"
        command("helios-train", train.main, *config, warmup, *overrides)

    if not parts.exists():
        world, kind = f"--config.data.num_shapes={args.num_shapes}", "gpu_" if gpu else ""
        train_on(f"tiny_vae.py:{kind}images", "vae_images", args.image_steps, world)
        images = f"--config.start.folder={newest(out / 'vae_images')}"
        train_on(f"tiny_vae.py:{kind}clips", "vae", args.clip_steps, world, images)
        write_parts(newest(out / "vae"), parts)
    sets = [("videos", FRAMES, args.scenes), ("starts", CHUNK, args.starts)]
    for world, (name, frames, scenes) in enumerate(sets if "latents" in wanted else ()):
        command(
            "helios-prepare",
            prepare.main,
            f"--model={parts}",
            f"--moving_shapes={scenes}",
            f"--seed={world}",
            *([f"--num_shapes={args.num_shapes}"] if args.num_shapes else []),
            f"--sizes={SIZE}x{SIZE}",
            f"--min_frames={frames}",
            f"--max_frames={frames}",
            "--no-text",
            f"--batch={args.encode_batch}",
            f"--clips_per_file={max(64, scenes // 2)}",
            *(["--vae_dtype=bfloat16", "--processes", f"--readers={os.cpu_count()}"] if gpu else []),
            f"--out={out / 'latents' / name}",
            parse=prepare.parse,
        )
    size = "tiny_gpu" if gpu else "tiny"
    folders = tuple(str(out / "latents" / name) for name, *_ in sets)
    # Half of the samples come from whole videos; a third of all samples then has a past.
    ratios = f"--config.data.ratios={(args.starts / args.scenes, 1.0)}"
    data = (f"--config.data.folders={folders}", ratios, f"--config.data.tokenizer={parts}")
    data += (f"--config.product.parts={parts}",)
    if "stage1" in wanted:
        train_on(f"stage1_init.py:{size}", "stage1", args.stage1_steps, *data)
    if "stage2" in wanted:
        begin = f"--config.start.folder={newest(out / 'stage1')}"
        train_on(f"stage2_init.py:{size}", "stage2", args.stage2_steps, *data, begin)
    results = out / "artefacts"
    runs = [out / name for name in ("vae_images", "vae", "stage1", "stage2")]
    write_curves([run for run in runs if (run / "metrics.jsonl").exists()], results)
    if "videos" in wanted:
        # Guidance is an argument of the compiled programs: another value takes only seconds.
        cases = [("stage2", args.steps, guidance) for guidance in args.guidance]
        for stage, steps, guidance in [*cases, ("stage1", (sum(args.steps),), args.guidance[0])]:
            evaluation = Evaluation(
                videos=args.videos,
                batch=max(1, args.videos // 2),
                steps=steps,
                guidance=guidance,
                num_shapes=args.num_shapes,
            )
            result = sample_and_score(newest(out / stage), results / f"{stage}-guidance{guidance:g}", evaluation)
            print(stage, json.dumps(result, indent=1), flush=True)
    print(f"# all: {time.perf_counter() - start:.1f} s")
    return 0


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="train_tiny", description=__doc__)

    def add(name: str, help: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", help=help, **options)

    add("out", "folder to write (default runs/tiny)", type=path("--out"), default=Path("runs/tiny"))
    add("size", "what it runs on (default cpu)", choices=list(DEFAULTS), default="cpu")
    add("until", "last phase to run (default: all)", choices=PHASES, default=PHASES[-1])
    add("num_shapes", "shapes in each scene (default 0: 1 to 3)", type=int, default=0)
    add("image_steps", "steps of the VAE on images", type=int)
    add("clip_steps", "steps of the VAE on clips", type=int)
    add("scenes", "scenes to encode as whole videos", type=int)
    add("starts", "further scenes, of which the first chunk is encoded", type=int)
    add("encode_batch", "chunks that are encoded at a time", type=int)
    add("stage1_steps", "steps of stage 1", type=int)
    add("stage2_steps", "steps of stage 2", type=int)
    add("batch", "samples per step of every training (default: that of the experiment)", type=int, default=0)
    add("videos", "videos to sample and score", type=int)
    add("steps", "network calls per level in sampling (default 10,10,10)", type=integers, default=(10, 10, 10))
    add("guidance", "guidance scales in sampling (default 2)", type=_numbers, default=(2.0,))
    args = parser.parse_args(argv[1:])
    for name, value in DEFAULTS[args.size].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


if __name__ == "__main__":
    sys.exit(app.run(main, flags_parser=_parse))
