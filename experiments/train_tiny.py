r"""Everything from nothing: a VAE, a data set, stages 1 to 3, videos and their scores.

    python -m helios_jax.experiments.train_tiny --out=runs/tiny                   # make train-tiny
    python -m helios_jax.experiments.train_tiny --size=gpu --out=runs/tiny_gpu    # 15 times the size
    python -m helios_jax.experiments.train_tiny --size=helios_tiny --out=runs/helios_tiny

    1  a small VAE is trained on the world of moving shapes         <out>/vae_images, <out>/vae
    2  helios-prepare encodes scenes, most of them only up to       <out>/parts, <out>/latents
       the first chunk, which is the hardest to learn
    3  stage 1: a small transformer and text encoder learn them     <out>/stage1
    4  stage 2: they learn the pyramid                              <out>/stage2
    5  videos are sampled from captions of new scenes and scored    <out>/artefacts: scores, videos, curves
    6  stage 3: helios-prepare records trajectories of the model    <out>/trajectories, <out>/ode
       of stage 2, from which a few-step student is initialised
    7  another initialisation, which needs no recordings            <out>/consistency
    8  distribution matching: one of the two is distilled further   <out>/dmd
    9  the same with a discriminator                                <out>/gan
    10 the four students are sampled and scored like their teacher  <out>/artefacts/students.json

--size=helios_tiny is a model that two CPU cores sample in real time (11.6M parameters in all networks), on videos of 8
chunks in the textured style of the world, in which shapes leave and return. It needs a GPU, and is not trained yet.
ship_tiny.py adds a student of it to the package, as helios-tiny.

--size=cpu ends after the fifth unless --until=students says otherwise. --stage1, --stage2 and --parts name products of
another run, which take the place of phases 1, 3 and 4. Cost and result of stage 3: not yet measured.

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
helios_jax/evaluation/moving_shapes.py, and tiny_students.py for those of the students.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, logging

from helios_jax.arguments import Parser, path
from helios_jax.data.moving_shapes.styles import CAPTION_TOKENS, STYLES, Style
from helios_jax.evaluation.moving_shapes import Evaluation, integers
from helios_jax.experiments.tiny_commands import SETS, encode_scenes, record_trajectories, train_on, train_vae
from helios_jax.experiments.tiny_curves import write_curves
from helios_jax.experiments.tiny_students import STUDENT_STEPS, Contender, compare, scored, table

STUDENTS = ("ode", "consistency", "dmd", "gan")
PHASES = ("vae", "latents", "stage1", "stage2", "videos", *STUDENTS, "students")
WORDS = 128
"""Entries of the text encoder's table for captions of the textured style, which have 104 words."""

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
        "trajectories": 8,
        "ode_steps": 40,
        "consistency_steps": 40,
        "dmd_steps": 20,
        "gan_steps": 20,
        "until": "videos",
        "style": "plain",
        "clip_chunks": 3,
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
        "trajectories": 4096,
        "ode_steps": 1000,
        "consistency_steps": 1000,
        "dmd_steps": 1500,
        "gan_steps": 1500,
        "until": "students",
        "style": "plain",
        "clip_chunks": 3,
    },
}
# Whole videos of 8 chunks: shapes stay away for up to 150 frames, while the history shows the last 76 and the anchor.
DEFAULTS["helios_tiny"] = DEFAULTS["gpu"] | {"style": "textured", "clip_chunks": 8}
"""Settings by size, in addition to those of the experiments."""

SIZES = {"cpu": "tiny", "gpu": "tiny_gpu", "helios_tiny": "helios_tiny"}
"""Sizes of the experiments by those of this program."""


def main(args: argparse.Namespace) -> int:
    """Runs the phases."""
    logging.set_verbosity(logging.WARNING)
    from helios_jax.compilation import use_compilation_caches

    use_compilation_caches()
    check_products(args)
    start, out, results = time.perf_counter(), args.out, args.out / "artefacts"
    size = SIZES[args.size]
    wanted = PHASES[: PHASES.index(args.until) + 1]
    parts = args.parts or out / "parts"
    if not parts.exists():
        train_vae(args, parts)
    if "latents" in wanted:
        encode_scenes(args, parts)
    data, common = scene_flags(args, out, parts)
    monitored = f"--config.validation.monitors.folders={(str(out / 'latents' / SETS[0]),)}"
    stage1, stage2 = args.stage1, args.stage2
    if "stage1" in wanted and stage1 is None:
        stage1 = train_on(
            args, f"stage1_init.py:{size}", "stage1", args.stage1_steps, *data, *text_flags(args.style, "words")
        )
    if "stage2" in wanted and stage2 is None:
        begin = f"--config.start.folder={stage1}"
        stage2 = train_on(args, f"stage2_init.py:{size}", "stage2", args.stage2_steps, *data, begin)
    curves(out)
    like = Evaluation(videos=args.videos, batch=max(1, args.videos // 2), num_shapes=args.num_shapes, style=args.style)
    # Guidance is an argument of the compiled programs: another value takes only seconds.
    teachers = [Contender(name="stage2", pipeline=stage2, steps=args.steps, guidance=one) for one in args.guidance]
    if "videos" in wanted:
        steps, guidance = (sum(args.steps),), args.guidance[0]
        for one in [*teachers, Contender(name="stage1", pipeline=stage1, steps=steps, guidance=guidance)]:
            print(one.name, json.dumps(scored(one, results, like), indent=1), flush=True)
    students = {"data": (*data, monitored), "common": (*common, monitored)}
    products = train_students(args, wanted, stage1, stage2, **students)
    curves(out)
    if "students" in wanted:
        students = [
            Contender(name=name, pipeline=products[name], steps=steps) for name in STUDENTS for steps in STUDENT_STEPS
        ]
        print(table(compare([*teachers, *students], results, like)), flush=True)
    print(f"# all: {time.perf_counter() - start:.1f} s")
    return 0


def train_students(
    args: argparse.Namespace,
    wanted: Sequence[str],
    stage1: Path | None,
    stage2: Path | None,
    data: Sequence[str],
    common: Sequence[str],
) -> dict[str, Path]:
    """Trains the wanted students of stage 3; returns their products.

    Args:
        args: The arguments.
        wanted: Phases to run.
        stage1: The product that scores.
        stage2: The teacher.
        data: Flags for training on encoded scenes.
        common: Those of them that do not depend on the kind of data.
    """
    size, begin = SIZES[args.size], f"--config.start.folder={stage2}"
    products = {}
    if "ode" in wanted:
        pairs = (f"--config.data.folders={(str(record_trajectories(args, stage2)),)}", *common, begin)
        # Every video is three samples, one for each chunk.
        batch = 3 * -(-args.batch // 3)
        products["ode"] = train_on(args, f"stage3_ode.py:{size}", "ode", args.ode_steps, *pairs, batch=batch)
    if "consistency" in wanted:
        steps = args.consistency_steps
        products["consistency"] = train_on(args, f"stage3_consistency.py:{size}", "consistency", steps, *data, begin)
    heads = f"--config.method.gan.start_step={args.gan_steps // 2}"
    for name, experiment, steps, extra in (
        ("dmd", "stage3_distill.py", args.dmd_steps, ()),
        ("gan", "stage3_distill_gan.py", args.gan_steps, (heads,)),
    ):
        if name in wanted:
            starts = (f"--config.start.folder={products[args.init]}", f"--config.method.score.folder={stage1}")
            # The generator makes one update in five steps: a warm-up would be a large part of them.
            flags = (*data, *starts, *extra, *text_flags(args.style, "method.tokens"))
            products[name] = train_on(args, f"{experiment}:{size}", name, steps, *flags, warmup=False)
    return products


def scene_flags(args: argparse.Namespace, folder: Path, parts: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Flags for training on encoded scenes, and those of them that do not depend on the kind of data.

    Args:
        args: The arguments.
        folder: Where ``encode_scenes`` wrote them.
        parts: The checkpoint with VAE and tokenizer.
    """
    folders = tuple(str(folder / "latents" / name) for name in SETS)
    # Half of the samples come from whole videos; a third of all samples then has a past.
    ratios = f"--config.data.ratios={(args.starts / args.scenes, 1.0)}"
    common = (f"--config.data.tokenizer={parts}", f"--config.product.parts={parts}")
    common += text_flags(args.style, "data.tokens")
    return (f"--config.data.folders={folders}", ratios, *common), common


def text_flags(style: Style, setting: str) -> tuple[str, ...]:
    """The flag of a setting in which captions of a style do not fit what the experiments say; none if they do.

    Args:
        style: The style of the scenes.
        setting: A number of tokens below ``config``, or "words": the entries of the text encoder's table.
    """
    if style == "plain":
        return ()
    if setting == "words":
        return (f"--config.start.text_encoder.vocab_size={WORDS}",)
    return (f"--config.{setting}={CAPTION_TOKENS[style]}",)


def check_products(args: argparse.Namespace) -> None:
    """Ends the program if a folder that was given is not what it should be."""
    for name, part in (("stage1", "transformer"), ("stage2", "transformer"), ("parts", "vae")):
        folder = getattr(args, name)
        if folder is not None and not (folder / part).is_dir():
            sys.exit(f"train_tiny: --{name}={folder} has no {part}/; give a checkpoint such as <run>/product/<steps>")


def curves(out: Path) -> None:
    """Draws the losses of all runs."""
    runs = [out / name for name in ("vae_images", "vae", "stage1", "stage2", *STUDENTS)]
    if runs := [run for run in runs if (run / "metrics.jsonl").exists()]:
        write_curves(runs, out / "artefacts")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="train_tiny", description=__doc__)

    def add(name: str, help: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", help=help, **options)

    add("out", "folder to write (default runs/tiny)", type=path("--out"), default=Path("runs/tiny"))
    add("size", "what it runs on (default cpu)", choices=list(DEFAULTS), default="cpu")
    add("until", "last phase to run (default: students for the size gpu, videos for cpu)", choices=PHASES)
    add("parts", "checkpoint with a VAE and a tokenizer to use instead of training the VAE", type=path("--parts"))
    add("stage1", "product of stage 1 to use instead of training it", type=path("--stage1"))
    add("stage2", "product of stage 2 to use instead of training it", type=path("--stage2"))
    add(
        "init",
        "where dmd and gan start, unless they are already trained (default consistency)",
        choices=("ode", "consistency"),
        default="consistency",
    )
    add("num_shapes", "shapes in each scene (default 0: 1 to 3)", type=int, default=0)
    add("style", "style of the scenes (default: textured for the size helios_tiny, else plain)", choices=STYLES)
    add("clip_chunks", "chunks of a whole video (default: 8 for the size helios_tiny, else 3)", type=int)
    add("image_steps", "steps of the VAE on images", type=int)
    add("clip_steps", "steps of the VAE on clips", type=int)
    add("scenes", "scenes to encode as whole videos", type=int)
    add("starts", "further scenes, of which the first chunk is encoded", type=int)
    add("encode_batch", "chunks that are encoded at a time", type=int)
    add("stage1_steps", "steps of stage 1", type=int)
    add("stage2_steps", "steps of stage 2", type=int)
    add("trajectories", "captions of which trajectories are recorded", type=int)
    for name in STUDENTS:
        add(f"{name}_steps", f"steps of the phase {name}", type=int)
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
