"""``helios-prepare``: videos to latents and text embeddings, ready for training.

    helios-prepare --model=CKPT --clips=clips.json --out=latents         cuts of videos, with captions
    helios-prepare --model=CKPT --clips=folder --out=latents             videos, each with a caption in a .txt file
    helios-prepare --model=CKPT --moving_shapes=1000 --out=latents       scenes of a procedural world
    helios-prepare --from_pt=folder --out=latents                        latent files of the original implementation

CKPT is the folder or hub id of a checkpoint; its VAE and text encoder are used. clips.json is a list of objects
{"path": "a.mp4", "cut": [0, 129], "crop": [x0, x1, y0, y1], "fps": 24, "cap": ["A red fox ..."]}.

Frames are resampled to 24 per second. As in the published data set, clips whose aspect is nearer to another of the
published sizes are left out and the rest is cropped around the centre; --fit changes that.

All devices of the machine take part. After an interruption the same command resumes the work: finished files are
kept. Clips that are left out, damaged or without a caption are listed at the end and in OUT/skipped-<size>.jsonl; the
exit code is 3 if some are damaged or without a caption. To divide the work among machines, run the same command on
each with --num_shards and its own --shard_index, all writing to one folder; or use --beam.
"""

import argparse
import functools
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_jax.arguments import Parser, path, whole
from helios_jax.cli import Check, run_interruptible, run_program
from helios_jax.extras import require_extra
from helios_jax.user_input import user_path

if TYPE_CHECKING:
    from helios_jax.data.prepare.job import Status

Size = tuple[int, int]
"""Rows and columns."""

Job = tuple[Mapping[Size, Sequence[Any]], Callable[[], Any], dict[str, Any]]
"""Things to encode by latent size, what makes their encoder, and the settings that decide the result."""


_BAD_CLIPS = 3
"""Exit code of a finished job that could not use some of its clips."""

_MAX_SEED = 2**32 - 1

_SHOWN = 10
"""Skipped clips that are printed; all are in the file."""


def prepare(args: argparse.Namespace, check_interrupted: Check = lambda: None) -> int:
    """Encodes what the arguments name; ``check_interrupted`` is called after each clip. Returns the exit code.

    Raises:
        ValueError: Arguments that do not go together, or input that cannot be used.
        FileNotFoundError: Something that they name is missing.
        FileExistsError: ``--beam`` would write into a dataset that exists.
    """
    _check(args)
    require_extra("train", "preparing data sets")
    from helios_jax.data.prepare.job import write_latents

    work, make_encode, settings = _import_job(args) if args.from_pt else _encode_job(args)
    clips = sum(map(len, work.values()))
    print(f"{clips} clips, latent sizes {', '.join(f'{h}x{w} ({len(work[h, w])})' for h, w in work)}", flush=True)
    if args.beam is not None:
        from helios_jax.data.prepare.beam import write_latents_with_beam

        write_latents_with_beam(work, make_encode, args.out, options=args.beam)
        print(f"{args.out}: complete")
        return _report_skipped(args.out, list(work))
    part = _part(args)
    complete = write_latents(
        work,
        make_encode,
        args.out,
        settings=settings,
        clips_per_file=args.clips_per_file,
        part=part,
        on_clip=_progress(check_interrupted),
    )
    print(f"{args.out}: {'complete' if complete else f'worker {part[0]} of {part[1]} is done, others are not'}")
    return _report_skipped(args.out, list(work)) if complete else 0


def _report_skipped(out: Path, sizes: Sequence[Size]) -> int:
    """Prints which clips were skipped and why; returns the exit code."""
    from helios_jax.data.prepare.job import read_skipped, skipped_file

    skipped = read_skipped(out, sizes)
    bad = [failure for failure in skipped if not failure.by_rule]
    if skipped:
        files = ", ".join(str(skipped_file(out, size)) for size in sizes)
        print(f"{len(skipped) - len(bad)} clips were left out, {len(bad)} could not be used; see {files}")
        for failure in (*bad, *(failure for failure in skipped if failure.by_rule))[:_SHOWN]:
            print(f"  {failure.uid}: {failure.error}")
    return _BAD_CLIPS if bad else 0


def _check(args: argparse.Namespace) -> None:
    sources = {name: getattr(args, name) for name in ("clips", "moving_shapes", "from_pt")}
    given = [f"--{name}" for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(f'--{name}' for name in sources)}; got {', '.join(given) or 'none'}")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out={args.out} is a file; give a folder")
    if args.from_pt is None and args.model is None:
        raise ValueError("give --model, the checkpoint whose VAE and text encoder are to be used")
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


def _part(args: argparse.Namespace) -> tuple[int, int]:
    """This worker's number, and how many there are."""
    import jax

    if args.num_shards is not None:
        return args.shard_index, args.num_shards
    return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)


def _encode_job(
    args: argparse.Namespace,
) -> tuple[Mapping[Size, Sequence[Any]], Callable[[], Any], dict[str, Any]]:
    """Clips by latent size, a function that loads the encoder, and the settings that decide the result."""
    from helios_jax.checkpoints.components import read_json
    from helios_jax.checkpoints.hub import local_folder
    from helios_jax.config import VaeConfig
    from helios_jax.data.prepare.clip_lists import clips_from_folder, clips_from_json
    from helios_jax.data.prepare.clips import ShapesClip
    from helios_jax.data.prepare.file_clips import ReadOptions
    from helios_jax.media.files import ClipError
    from helios_jax.media.resizing import nearest_size

    reading = {"video_fps": args.video_fps, "fit": args.fit}
    if args.moving_shapes is not None:
        reading = {}
        frames = args.max_frames
        world = {"seed": args.seed, "num_shapes": args.num_shapes}
        clips = [ShapesClip(index=i, frames=frames, **world) for i in range(args.moving_shapes)]
    elif args.clips.is_dir():
        clips = clips_from_folder(args.clips, ReadOptions(**reading))
    else:
        clips = clips_from_json(args.clips, args.root, ReadOptions(**reading))
    vae = VaeConfig.from_diffusers(read_json(local_folder(args.model, weights=False) / "vae" / "config.json"))
    work: dict[Size, list[Any]] = {}
    for clip in clips:
        try:
            aspect = clip.aspect() if len(args.sizes) > 1 else None
        except ClipError:
            aspect = None  # Reading the clip fails again, and is reported then.
        height, width = nearest_size(aspect, args.sizes)
        work.setdefault((height // vae.scale_factor_spatial, width // vae.scale_factor_spatial), []).append(clip)
    names = ("min_frames", "max_frames", "max_text_tokens", "seed", "batch", "text", "dtype", "vae_dtype")
    options = {name: getattr(args, name) for name in names}
    workers = {"readers": args.readers, "processes": args.processes}
    make_encode = functools.partial(_load_encoder, args.model, args.cache, **workers, **options)
    return work, make_encode, {"model": str(args.model), **options, **reading}


def _import_job(
    args: argparse.Namespace,
) -> tuple[Mapping[Size, Sequence[Any]], Callable[[], Any], dict[str, Any]]:
    """Original latent files by size, a function that loads the importer, and the settings that decide the result."""
    from helios_jax.data.helios_latents.torch_files import find_torch_latents

    work: dict[Size, list[Any]] = {}
    for file in find_torch_latents(args.from_pt, min_frames=args.min_frames):
        work.setdefault(file.size, []).append(file)
    return work, _load_importer, {"from_pt": str(args.from_pt), "min_frames": args.min_frames}


def _load_encoder(model: str, cache: Path | None, **options: Any) -> Any:
    """Loads the networks; with Beam, on a worker."""
    from helios_jax.compilation import use_compilation_caches
    from helios_jax.data.prepare.encode import ClipEncoder, EncodeOptions

    use_compilation_caches(cache)
    start = time.monotonic()
    encoder = ClipEncoder.load(model, EncodeOptions(**options))
    print(f"{model}: loaded on {encoder.mesh.size} devices in {time.monotonic() - start:.1f} s", flush=True)
    return encoder


def _load_importer() -> Any:
    from helios_jax.data.helios_latents.torch_files import import_torch_latents

    return import_torch_latents


def _progress(check_interrupted: Check) -> Callable[["Status"], None]:
    """Shows the last status: as one line on a terminal, every ten seconds in a log."""
    shown = 0.0

    def show(status: "Status") -> None:
        nonlocal shown
        check_interrupted()
        last = status.done == status.total
        if sys.stderr.isatty():
            print(f"\r\033[K{status}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or status.seconds - shown >= 10:
            print(status, file=sys.stderr, flush=True)
            shown = status.seconds

    return show


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
        return float(frame_rate(float(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither frames per second nor 'stored' ({error})") from error


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ``argv[0]`` is the program."""
    parser = Parser(prog="helios-prepare", description=__doc__)

    def add(name: str, help: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", help=help, **options)

    def add_whole(name: str, help: str, at_least: int, at_most: int | None = None, default: int | None = None) -> None:
        kind = whole(f"--{name}", at_least=at_least, at_most=at_most)
        add(name, help if default is None else f"{help} (default {default})", type=kind, default=default)

    add("out", "folder to write; the dataset is helios_latents/1.0.0 inside", type=path("--out"), required=True)
    add("model", "checkpoint folder in either layout, or hub id")
    add("clips", "JSON list of clips, or folder of videos with captions", type=path("--clips"))
    add(
        "root",
        "folder that the paths in the JSON list are relative to (default: that of the list)",
        type=path("--root"),
    )
    add_whole("moving_shapes", "number of procedural scenes, each --max_frames long", 1)
    add_whole("num_shapes", "shapes in each procedural scene (default: 1 to 3)", 1)
    add("from_pt", "folder of .pt files with chunked latents", type=path("--from_pt"))
    add("sizes", "pixels HxW, or HxW,HxW: the nearest aspect (default 384x640)", type=_sizes, default="384x640")
    add(
        "fit",
        "clips of another aspect: drop (default, as published), crop, pad or stretch",
        default="drop",
        choices=("drop", "crop", "pad", "stretch"),
    )
    add(
        "video_fps",
        "resample to this rate by the times of frames or 'stored': all frames (default 24)",
        type=_rate,
        default=24.0,
        metavar="FPS",
    )
    add_whole("min_frames", "clips with fewer frames are skipped", 1, default=121)
    add_whole("max_frames", "frames beyond are dropped", 1, default=501)
    add_whole("max_text_tokens", "length that texts are cut to", 1, default=512)
    add("text", "compute text embeddings (default: on)", action=argparse.BooleanOptionalAction, default=True)
    add_whole("seed", "seed of the posterior samples, and of the procedural world", 0, _MAX_SEED, default=0)
    add("dtype", "compute dtype of the text encoder", choices=("bfloat16", "float32"), default="bfloat16")
    add("vae_dtype", "compute dtype of the VAE", choices=("bfloat16", "float32"), default="float32")
    add_whole("batch", "chunks of 33 frames per device and call", 1, default=1)
    add_whole("readers", "threads that decode clips", 1, default=4)
    add("processes", "readers are processes, for --moving_shapes", action="store_true")
    add_whole("clips_per_file", "clips in each file", 1, default=64)
    add_whole("shard_index", "number of this worker, from 0", 0)
    add_whole("num_shards", "number of workers", 1)
    add("beam", "encode on Apache Beam, with these pipeline options", nargs="?", const="", metavar="OPTIONS")
    add("cache", "folder for compiled programs (default: helios_jax in the user's cache folder)", type=path("--cache"))
    args = parser.parse_args(argv[1:])
    if args.model is not None and args.model.startswith("~"):
        args.model = str(user_path(args.model, "--model"))
    return args


def main(args: argparse.Namespace) -> int:
    """Does the work; returns the exit code."""
    return run_interruptible("helios-prepare", lambda check_interrupted: prepare(args, check_interrupted))


def run() -> None:
    """Entry point of ``helios-prepare``."""
    run_program("helios-prepare", main, parse)


if __name__ == "__main__":
    run()
