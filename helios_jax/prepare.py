"""``helios-prepare``: encodes videos for training; ``helios_jax.data.prepare.flags`` describes its arguments."""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_jax.cli import Check, run_interruptible, run_program
from helios_jax.data.prepare.flags import Size, check, parse
from helios_jax.extras import require_extra

if TYPE_CHECKING:
    from helios_jax.data.prepare.job import Status

Job = tuple[Mapping[Size, Sequence[Any]], Callable[[], Any], dict[str, Any]]
"""Things to encode by latent size, what makes their encoder, and the settings that decide the result."""


_BAD_CLIPS = 3
"""Exit code of a finished job that could not use some of its clips."""

_SHOWN = 10
"""Number of skipped clips that are printed; the file lists all."""


def prepare(args: argparse.Namespace, check_interrupted: Check = lambda: None) -> int:
    """Encodes what the arguments name; ``check_interrupted`` is called after each clip. Returns the exit code.

    Raises:
        ValueError: Arguments that do not go together, or input that cannot be used.
        FileNotFoundError: Something that they name is missing.
        FileExistsError: ``--beam`` would write into a dataset that exists.
    """
    check(args)
    require_extra("train", "preparing data sets")
    from helios_jax.data.prepare.job import write_latents

    jobs = {"from_pt": _import_job, "prompts": _record_job, "from_ode_pt": _import_ode_job}
    job = next((job for source, job in jobs.items() if getattr(args, source) is not None), _encode_job)
    work, make_encode, settings = job(args)
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
        make_writer=_writer(args),
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
        world = {"seed": args.seed, "num_shapes": args.num_shapes, "style": args.style}
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


def _record_job(
    args: argparse.Namespace,
) -> tuple[Mapping[Size, Sequence[Any]], Callable[[], Any], dict[str, Any]]:
    """Prompts by latent size, a function that loads the teacher, and the settings that decide the result."""
    from helios_jax.checkpoints.settings import read_settings
    from helios_jax.data.prepare.ode import RecordOptions
    from helios_jax.data.prepare.ode_prompts import read_ode_prompts

    names = ("chunks", "guidance_scale", "student_steps", "amplify_first_chunk", "max_text_tokens", "batch", "text")
    options = RecordOptions(
        teacher_steps=args.steps,
        shift_after_upsampling=args.grid == "published",
        dtype=args.dtype,
        **{name: getattr(args, name) for name in names},
    )
    prompts = read_ode_prompts(args.prompts, seed=args.seed, negative_prompt=args.negative_prompt)
    found = read_settings(args.model)
    scheduler, (size,) = options.student_scheduler(found.scheduler), args.sizes
    factor = found.vae.scale_factor_spatial
    multiple = factor * found.transformer.patch_size[-1] << (scheduler.num_levels - 1)
    if size[0] % multiple or size[1] % multiple:
        raise ValueError(f"--sizes: {size[0]}x{size[1]} must be multiples of {multiple} for {args.model}")
    latent = size[0] // factor, size[1] // factor
    make = functools.partial(_load_recorder, args.model, args.cache, options)
    return {latent: prompts}, make, {"model": str(args.model), **dataclasses.asdict(options)}


def _import_ode_job(
    args: argparse.Namespace,
) -> tuple[Mapping[Size, Sequence[Any]], Callable[[], Any], dict[str, Any]]:
    """Original files of trajectories, a function that loads the importer, and the settings that decide the result."""
    from helios_jax.data.helios_ode.torch_files import find_torch_ode

    height, width = args.sizes[0]
    return (
        {(height // 8, width // 8): find_torch_ode(args.from_ode_pt)},
        _load_ode_importer,
        {"from_ode_pt": str(args.from_ode_pt)},
    )


def _writer(args: argparse.Namespace) -> Callable[..., Any]:
    """The writer of the data set that the arguments ask for."""
    if args.prompts is None and args.from_ode_pt is None:
        from helios_jax.data.helios_latents.writer import LatentWriter

        return LatentWriter
    from helios_jax.data.helios_ode.writer import OdeWriter

    return functools.partial(OdeWriter, levels=3 if args.prompts is None else len(args.steps))


def _load_recorder(model: str, cache: Path | None, options: Any) -> Any:
    """Loads the teacher."""
    from helios_jax.compilation import use_compilation_caches
    from helios_jax.data.prepare.ode import OdeRecorder

    use_compilation_caches(cache)
    start = time.monotonic()
    recorder = OdeRecorder.load(model, options)
    print(f"{model}: loaded in {time.monotonic() - start:.1f} s", flush=True)
    return recorder


def _load_ode_importer() -> Any:
    from helios_jax.data.helios_ode.torch_files import import_torch_ode

    return import_torch_ode


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


def main(args: argparse.Namespace) -> int:
    """Does the work; returns the exit code."""
    return run_interruptible("helios-prepare", lambda check_interrupted: prepare(args, check_interrupted))


def run() -> None:
    """Entry point of ``helios-prepare``."""
    run_program("helios-prepare", main, parse)


if __name__ == "__main__":
    run()
