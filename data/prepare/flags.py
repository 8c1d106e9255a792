"""The arguments of ``helios-prepare``. Nothing heavy is imported, so that ``--help`` answers at once."""

import argparse
import importlib.util
from collections.abc import Sequence
from typing import Any

from helios_jax.arguments import Parser, finite, path, whole, wholes
from helios_jax.sampling.settings import MAX_GUIDANCE, MAX_STEPS
from helios_jax.user_input import number_in

Size = tuple[int, int]
"""Rows and columns."""

_MAX_SEED = 2**32 - 1

DESCRIPTION = """\
Videos to latents and text embeddings, ready for training.

    helios-prepare --model=CKPT --clips=clips.json --out=latents         cuts of videos, with captions
    helios-prepare --model=CKPT --clips=folder --out=latents             videos, each with a caption in a .txt file
    helios-prepare --model=CKPT --moving_shapes=1000 --out=latents       scenes of a procedural world
    helios-prepare --from_pt=folder --out=latents                        latent files of the original implementation
    helios-prepare --model=CKPT --prompts=prompts.csv --out=ode          trajectories of a teacher, for distillation
    helios-prepare --from_ode_pt=folder --out=ode                        those of the original implementation

CKPT is the folder or hub id of a checkpoint; its VAE and text encoder are used. clips.json is a list of objects
{"path": "a.mp4", "cut": [0, 129], "crop": [x0, x1, y0, y1], "fps": 24, "cap": ["A red fox ..."]}.

Frames are resampled to 24 per second. As in the published data set, clips whose aspect is nearer to another of the
published sizes are left out and the rest is cropped around the centre; --fit changes that.

With --prompts, CKPT is a pyramid model such as Helios-Mid, which samples a video of --chunks chunks for each prompt of
a .txt or .csv file (as for helios-sample). Recorded are the samples at the steps that a few-step student will take.

All devices of the machine take part. After an interruption the same command resumes the work: finished files are
kept. Clips that are left out, damaged or without a caption are listed at the end and in OUT/skipped-<size>.jsonl; the
exit code is 3 if some are damaged or without a caption. To divide the work among machines, run the same command on
each with --num_shards and its own --shard_index, all writing to one folder; or use --beam.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ``argv[0]`` is the program."""
    parser = Parser(prog="helios-prepare", description=DESCRIPTION)

    def add(name: str, help: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", help=help, **options)

    def add_whole(name: str, help: str, at_least: int, at_most: int | None = None, default: int | None = None) -> None:
        kind = whole(f"--{name}", at_least=at_least, at_most=at_most)
        add(name, help if default is None else f"{help} (default {default})", type=kind, default=default)

    add("out", "folder to write; the dataset is helios_latents/1.0.0 inside", type=path("--out"), required=True)
    add("model", "checkpoint folder in either layout, or hub id", type=_model)
    add("clips", "JSON list of clips, or folder of videos with captions", type=path("--clips"))
    add("root", "folder that paths in the JSON list are relative to (default: that of the list)", type=path("--root"))
    add_whole("moving_shapes", "number of procedural scenes, each --max_frames long", 1)
    add_whole("num_shapes", "shapes in each procedural scene (default: 1 to 3)", 1)
    add("style", "of procedural scenes: plain (default) or textured", choices=("plain", "textured"), default="plain")
    add("from_pt", "folder of .pt files with chunked latents", type=path("--from_pt"))
    add("prompts", "txt or csv file of prompts, to record trajectories", type=path("--prompts"))
    add("from_ode_pt", "folder of .pt files with recorded trajectories", type=path("--from_ode_pt"))
    add_whole("chunks", "with --prompts: chunks of 33 frames of each video", 1, default=5)
    guidance = finite("--guidance_scale", at_least=1, at_most=MAX_GUIDANCE)
    add("guidance_scale", "with --prompts: guidance of the teacher (default 5)", type=guidance, default=5.0)
    add("negative_prompt", "with --prompts: what guidance steers away from (default: the published one)")
    for name, of, default in (("steps", "the teacher's", "20,20,20"), ("student_steps", "the student's", "2,2,2")):
        kind = wholes(f"--{name}", at_least=1, at_most=MAX_STEPS)
        add(name, f"with --prompts: {of} steps per level (default {default})", type=kind, default=default)
    add(
        "amplify_first_chunk",
        "with --prompts: twice the student's steps in the first chunk (default: on)",
        action=argparse.BooleanOptionalAction,
        default=True,
    )
    add(
        "grid",
        "with --prompts: the student's steps as they are sampled (default), or as in the published training",
        choices=("sampled", "published"),
        default="sampled",
    )
    add("sizes", "pixels HxW, or HxW,HxW: the nearest aspect (default 384x640)", type=_sizes, default="384x640")
    add(
        "fit",
        "clips of another aspect: drop (default, as published), crop, pad or stretch",
        default="drop",
        choices=("drop", "crop", "pad", "stretch"),
    )
    add(
        "video_fps",
        "frames per second to resample to, or 'stored' to take all frames (default 24)",
        type=_rate,
        default=24.0,
        metavar="FPS",
    )
    add_whole("min_frames", "clips with fewer frames are skipped", 1, default=121)
    add_whole("max_frames", "longer clips are cut to this many frames", 1, default=501)
    add_whole("max_text_tokens", "length that texts are cut to", 1, default=512)
    add("text", "compute and store text embeddings (default: on)", action=argparse.BooleanOptionalAction, default=True)
    add_whole("seed", "seed of the posterior samples, and of the procedural world", 0, _MAX_SEED, default=0)
    add("dtype", "compute dtype of text encoder and teacher", choices=("bfloat16", "float32"), default="bfloat16")
    add("vae_dtype", "compute dtype of the VAE", choices=("bfloat16", "float32"), default="float32")
    add_whole("batch", "chunks of 33 frames per device and call; with --prompts videos at a time", 1, default=1)
    add_whole("readers", "threads that decode clips", 1, default=4)
    add("processes", "readers are processes, for --moving_shapes", action="store_true")
    add_whole("clips_per_file", "clips in each file (default 64; 8 with --prompts, which take minutes each)", 1)
    add_whole("shard_index", "number of this worker, from 0", 0)
    add_whole("num_shards", "number of workers", 1)
    add("beam", "encode on Apache Beam, with these pipeline options", nargs="?", const="", metavar="OPTIONS")
    add("cache", "folder for compiled programs (default: helios_jax in the user's cache folder)", type=path("--cache"))
    args = parser.parse_args(argv[1:])
    if args.clips_per_file is None:
        args.clips_per_file = 64 if args.prompts is None else 8
    return args


def check(args: argparse.Namespace) -> None:
    """Checks ranges, and arguments that depend on each other.

    Raises:
        ValueError: They do not go together.
    """
    sources = {name: getattr(args, name) for name in ("clips", "moving_shapes", "from_pt", "prompts", "from_ode_pt")}
    given = [f"--{name}" for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(f'--{name}' for name in sources)}; got {', '.join(given) or 'none'}")
    if args.style != "plain" and args.moving_shapes is None:
        raise ValueError(f"--style={args.style} is for procedural scenes; give --moving_shapes too")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out={args.out} is a file; give a folder")
    if args.from_pt is None and args.from_ode_pt is None and args.model is None:
        raise ValueError("give --model, the checkpoint whose networks are to be used")
    records = args.prompts is not None or args.from_ode_pt is not None
    if records and args.beam is not None:
        raise ValueError("--beam encodes clips; divide prompts with --shard_index and --num_shards")
    if records and len(args.sizes) != 1:
        raise ValueError(f"trajectories have one size; --sizes names {len(args.sizes)}")
    if args.beam is not None and args.num_shards is not None:
        raise ValueError("--beam divides the work itself: drop --num_shards and --shard_index")
    if args.beam is not None and importlib.util.find_spec("apache_beam") is None:
        raise ValueError(
            "--beam needs Apache Beam: pip install 'helios_jax[beam]', or leave --beam out and divide the work with "
            "--shard_index and --num_shards"
        )
    if (args.shard_index is None) != (args.num_shards is None):
        raise ValueError("--shard_index and --num_shards go together")
    if args.max_frames < args.min_frames:
        raise ValueError(f"--max_frames={args.max_frames} is below --min_frames={args.min_frames}")
    for size in args.sizes:
        if size[0] % 16 or size[1] % 16:
            raise ValueError(f"--sizes: {size[0]}x{size[1]} must be multiples of 16 (of 64 for pyramid models)")


def _model(text: str) -> str:
    """A folder, with ``~`` expanded, or a hub id."""
    return str(path("--model")(text)) if text.startswith("~") else text


def _sizes(text: str) -> list[Size]:
    """HxW, or HxW,HxW,..."""
    from helios_jax.data.helios_latents.record import parse_size

    try:
        return [parse_size(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _rate(text: str) -> float | None:
    """Frames per second, or ``stored``."""
    from helios_jax.media.rates import frame_rate

    if text == "stored":
        return None
    try:
        return float(frame_rate(number_in(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither frames per second nor 'stored' ({error})") from error
