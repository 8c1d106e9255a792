"""The arguments of ``helios-evaluate``, and checks that need no checkpoint. Imports nothing heavy."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helios_jax.arguments import Parser, finite, path, whole, wholes
from helios_jax.checkpoints.sources import defaults_of
from helios_jax.config.defaults import SamplingDefaults

PROGRAM = "helios-evaluate"

DESCRIPTION = """Measure the videos of a checkpoint, or videos in files.

    helios-evaluate --model=runs/tiny/product --suite=moving_shapes --videos=256 --world=77 --steps=2,2,2 --out=scores
    helios-evaluate --model=BestWishYsh/Helios-Distilled --suite=drift --prompt_file=prompts.csv --out=drift
    helios-evaluate --suite=heliosbench --videos_dir=videos --prompt_file=prompts.csv --out=bench

Suites:
  moving_shapes   how many videos show what their caption of the small world says
  drift           brightness, sharpness, borders of chunks and similarity along long videos
  heliosbench     the benchmark of the paper: motion amplitude, its drift, speed, ratings and total

--out gets scores.json, report.html, and a record for each video. The same command resumes an interrupted run.
Videos are those of --model, or files: arguments without a flag, and all in --videos_dir. Names of files begin with the
id of their prompt, as in 2_240_ori81.mp4. Without --prompt_file, prompts are captions of moving shapes.
"""

SUITES = ("moving_shapes", "drift", "heliosbench")
STYLES = ("plain", "textured")
RULES = ("long", "short")

_MAX_VIDEOS, _MAX_SEED, _MAX_SIDE = 10**6, 2**31 - 1, 4096

_DEFAULTS: dict[str, dict[str, Any]] = {
    "moving_shapes": {"videos": 128, "num_frames": 99, "batch": 64},
    "drift": {"videos": 16, "num_frames": 1320, "batch": 16},
    "heliosbench": {"videos": 8, "num_frames": None, "batch": 1},
}
"""What is not given, by suite."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ``argv[0]`` is the program. Exits with code 2 and one line if it cannot be read."""
    parser = Parser(prog=PROGRAM, description=DESCRIPTION)

    def add(name: str, help: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", help=help, **options)

    def add_whole(name: str, help: str, at_least: int, at_most: int, default: int | None = None) -> None:
        kind = whole(f"--{name}", at_least=at_least, at_most=at_most)
        add(name, help if default is None else f"{help} (default {default})", type=kind, default=default)

    parser.add_argument("files", nargs="*", type=path("files"), help="videos to measure in place of a checkpoint's")
    add("suite", "what is measured", choices=SUITES, required=True)
    add("out", "folder for scores, report and records", type=path("--out"), required=True)
    add("model", "checkpoint folder in either layout, hub id, or helios-tiny")
    add("revision", "branch, tag or commit of a hub id")
    add("cache_dir", "folder for downloads (default: the hub's, or HF_HOME)", type=path("--cache_dir"))
    add("videos_dir", "folder of videos to measure in place of a checkpoint's", type=path("--videos_dir"))
    add_whole(
        "videos", "videos to sample (default 128, drift 16, heliosbench 8 or the prompts' number)", 1, _MAX_VIDEOS
    )
    add_whole("world", "seed of the moving shapes", 0, _MAX_SEED)
    add("style", "look of the moving shapes (default: what the model was trained on, else plain)", choices=STYLES)
    add_whole("num_shapes", "shapes in each scene, 0: 1 to 3", 0, 3, 0)
    add("continue_scenes", "sample continuations of the first chunks of the scenes", action="store_true")
    add("prompt_file", "txt or csv file with the prompts; a column duration gives frames", type=path("--prompt_file"))
    frames = "frames of each video (default 99, drift 1320, heliosbench as the prompts ask, or 120, 240, 720, 1440)"
    add_whole("num_frames", frames, 5, _MAX_VIDEOS)
    add_whole("height", "pixel rows (default 64 for moving shapes, the model's for other prompts)", 1, _MAX_SIDE)
    add_whole("width", "pixel columns (default 64 for moving shapes, the model's for other prompts)", 1, _MAX_SIDE)
    add("steps", "network calls per level, as 2,2,2 (default: the model's)", type=wholes("--steps", at_least=1))
    guidance = finite("--guidance_scale", at_least=-1000, at_most=1000)
    add("guidance_scale", "guidance is on above 1 (default: the model's)", type=guidance)
    add("negative_prompt", "used with guidance (default: the published one; for moving shapes the empty text)")
    add_whole(
        "max_text_tokens",
        "length that texts are padded or cut to (default: the model's, moving shapes 96 or 112)",
        1,
        4096,
    )
    add_whole("seed", "seed of the first video's noise", 0, _MAX_SEED, 0)
    add_whole("batch", "videos sampled at a time (default 64, drift 16, heliosbench 1; prompt files 1)", 1, _MAX_VIDEOS)
    dtypes = {"choices": ("auto", "bfloat16", "float32"), "default": "auto"}
    add("dtype", "compute dtype of transformer and text encoder (default: float32 on CPUs, else bfloat16)", **dtypes)
    add("vae_dtype", "compute dtype of the VAE (default likewise)", **dtypes)
    add_whole("chunk_frames", "frames of a chunk of videos in files", 1, _MAX_VIDEOS, 33)
    add("metric", "a further metric, module:name or file.py:name; may be repeated", action="append", default=[])
    add("results", "heliosbench: JSON file with what was measured elsewhere", type=path("--results"))
    add("rules", "heliosbench: ratings of long videos, or of the first 81 frames", choices=RULES, default="long")
    add("save_videos", "write the sampled videos as mp4 into OUT/videos", action="store_true")
    add_whole("processes", "processes that measure (default: as many as CPUs; with --metric 1)", 1, 1024)
    add("overwrite", "remove an evaluation with other settings from --out", action="store_true")
    add("allow_cpu", "run a model on a CPU that is made for GPUs", action="store_true")
    return parser.parse_args(argv[1:])


def check(args: argparse.Namespace) -> None:
    """Checks that arguments go together, and fills in the defaults of the suite.

    Raises:
        ValueError: They do not.
        FileNotFoundError: The prompt file or the checkpoint does not exist.
    """
    from_files = bool(args.files) or args.videos_dir is not None
    if from_files == (args.model is not None):
        many = "not both" if from_files else "one of them is needed"
        raise ValueError(f"give --model, or videos as files or with --videos_dir: {many}")
    trained = SamplingDefaults() if args.model is None else defaults_of(args.model)
    args.style = args.style or trained.style or "plain"
    if from_files:
        given = [name for name in ("videos", "steps", "guidance_scale", "save_videos") if getattr(args, name)]
        if given:
            raise ValueError(f"--{given[0]} is about sampling, and videos are read from files")
    if args.continue_scenes:
        if from_files or args.prompt_file is not None or args.suite == "heliosbench":
            raise ValueError("--continue_scenes is for videos of moving shapes that --model samples")
        if (args.num_frames or 99) < 66:
            raise ValueError(f"--num_frames={args.num_frames} includes the scene's first chunk; give at least 66")
    for name in ("results", "rules"):
        if getattr(args, name) not in (None, "long") and args.suite != "heliosbench":
            raise ValueError(f"--{name} belongs to --suite=heliosbench, not to {args.suite}")
    if args.prompt_file is not None:
        if args.suite == "moving_shapes" and not from_files:
            raise ValueError("--suite=moving_shapes samples its own captions; --prompt_file is for videos in files")
        if not args.prompt_file.is_file():
            raise FileNotFoundError(f"the prompt file {args.prompt_file} does not exist (looked in {Path.cwd()})")
    if args.metric and (args.processes or 1) > 1:
        raise ValueError("--metric is run in one process, because it may need a network: leave --processes out")
    fill_in(args, trained)


def fill_in(args: argparse.Namespace, trained: SamplingDefaults) -> None:
    """Replaces ``None`` by the default of the suite, or of prompts that are no captions by that of the model."""
    from helios_jax.data.moving_shapes.styles import CAPTION_TOKENS

    captions = args.prompt_file is None
    args.world_given = args.world is not None
    defaults = {
        **_DEFAULTS[args.suite],
        "world": 1000,
        "processes": 1 if args.metric else os.cpu_count() or 1,
        "height": 64 if captions else trained.height,
        "width": 64 if captions else trained.width,
        "max_text_tokens": CAPTION_TOKENS[args.style] if captions else trained.max_text_tokens,
        "negative_prompt": "" if captions else None,
    }
    if not captions:
        defaults |= {"batch": 1, "videos": _MAX_VIDEOS}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.steps is not None:
        args.steps = args.steps if len(args.steps) > 1 else args.steps[0]
