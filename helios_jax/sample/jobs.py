"""The videos that the arguments ask for."""

import argparse
import dataclasses
import os
import secrets
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from helios_jax.checkpoints.lora_argument import find_lora_file
from helios_jax.checkpoints.shipped import named_folder
from helios_jax.checkpoints.sources import folder_of
from helios_jax.sample.flags import DEFAULTS, settings_of
from helios_jax.sample.outputs import Outputs, check_apart, check_distinct, check_outputs
from helios_jax.sample.resuming import check_resume_flags, check_save_state
from helios_jax.sampling.prompt_files import PromptedVideo, read_prompt_file
from helios_jax.sampling.settings import MAX_SEED, SampleSettings
from helios_jax.user_input import existing_file

if TYPE_CHECKING:
    from helios_jax.sampling.prompts import PromptSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make.

    Attributes:
        source: The flag, or the file and line, that asks for it.
        prompt: The pipeline's ``prompt``; ``None`` for a video that is resumed with its own.
        negative_prompt: The pipeline's ``negative_prompt``.
        image: The image to start from.
        video: The clip to continue.
        settings: How to sample; ``num_frames`` is ``None`` where the schedule of the prompts decides, or in a stream.
        seed_drawn: The seed was drawn for this run.
        outputs: The files to write.
    """

    source: str
    prompt: "str | PromptSchedule | None"
    negative_prompt: str | None
    image: Path | None
    video: Path | None
    settings: SampleSettings
    seed_drawn: bool
    outputs: Outputs


def plan_jobs(args: argparse.Namespace) -> list[Job]:
    """The videos that the arguments ask for, finished or not. Checks everything that does not need the model.

    Raises:
        ValueError: The arguments contradict each other, the prompt file cannot be used, or outputs collide.
        OSError: A file does not exist, an output exists and may not be replaced, or its folder cannot be written to.
    """
    if args.image is not None and args.video is not None:
        raise ValueError("--image and --video are both given; use one")
    check_resume_flags(args)
    jobs = _one_job(args) if args.prompt_file is None else _jobs_of_file(args)
    check_distinct((job.source, job.outputs) for job in jobs)
    inputs = _inputs(args, jobs)
    check_apart(inputs, (job.outputs for job in jobs))
    check_save_state(args, [path for flag, path in inputs.items() if flag != "--resume"], (job.outputs for job in jobs))
    for job in jobs:
        check_outputs(job.outputs)
    return jobs


def check_inputs(args: argparse.Namespace, jobs: list[Job]) -> None:
    """Checks that everything that is read is there, before anything heavy is imported to read it.

    Raises:
        ValueError: A path is that of something else.
        FileNotFoundError: There is nothing.
    """
    folder_of(args.model)
    for file, _ in args.lora:
        find_lora_file(file)
    for job in jobs:
        try:
            for kind in ("image", "video"):
                if (path := getattr(job, kind)) is not None:
                    existing_file(path, kind)
        except (ValueError, OSError) as error:
            raise in_line(error, job.source) from error


def in_line(error: ValueError | OSError, source: str) -> ValueError | OSError:
    """The error with the line of the prompt file that asks for the video, if one does."""
    if source.startswith("--"):
        return error
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    return kind(f"{source}: {error}")


def _one_job(args: argparse.Namespace) -> list[Job]:
    if args.prompt is None and args.warmup:
        return []
    if args.prompt is None and args.resume is None:
        raise ValueError("give --prompt or --prompt_file; for a video without text use --prompt=''")
    if args.out is None:
        raise ValueError("give --out, the mp4 to write")
    if args.out.suffix.lower() != ".mp4":
        raise ValueError(f"--out={args.out} must end in .mp4 (a folder goes with --prompt_file)")
    if args.out.is_dir():
        raise IsADirectoryError(f"--out={args.out} is a folder; choose the name of an mp4")
    if os.path.lexists(args.out) and not args.overwrite:
        raise FileExistsError(f"{args.out} exists; choose another --out or pass --overwrite")
    seed, drawn = _seed(args.seed)
    settings = settings_of(args, seed=seed)
    if settings.num_frames is None and not args.stream:
        settings = dataclasses.replace(settings, num_frames=DEFAULTS.num_frames)
    return [
        Job(
            source="--prompt" if args.resume is None else "--resume",
            prompt=args.prompt,
            negative_prompt=args.negative_prompt,
            image=args.image,
            video=args.video,
            settings=settings,
            seed_drawn=drawn,
            outputs=Outputs(video=args.out),
        )
    ]


def _jobs_of_file(args: argparse.Namespace) -> list[Job]:
    if args.prompt is not None or args.stream:
        raise ValueError("--prompt_file makes finished videos of its own prompts: drop --prompt and --stream")
    if args.out is None:
        raise ValueError("give --out, the folder for the videos of --prompt_file")
    if args.out.suffix.lower() == ".mp4":
        raise ValueError(f"--out={args.out} must be a folder: a prompt file makes one video per prompt")
    if os.path.lexists(args.out) and not args.out.is_dir():
        raise NotADirectoryError(f"--out={args.out} is a file, not a folder; choose another --out")
    if os.path.realpath(args.out) == os.path.realpath(named_folder(args.model)):
        raise ValueError(f"--out={args.out} is the folder of --model; choose another --out")
    return [_job_of_file(args, video) for video in read_prompt_file(args.prompt_file)]


def _job_of_file(args: argparse.Namespace, video: PromptedVideo) -> Job:
    source = f"{args.prompt_file}, line {video.line}"
    if video.seed is None and args.seed >= 0:
        # The number depends on the id alone, so lines can be added and moved without changing other videos.
        seed, drawn = (args.seed + zlib.crc32(video.name.encode())) % (MAX_SEED + 1), False
    else:
        seed, drawn = _seed(args.seed if video.seed is None else video.seed)
    settings = settings_of(args, seed=seed)
    if len(video.prompts) == 1 and settings.num_frames is None:
        settings = dataclasses.replace(settings, num_frames=DEFAULTS.num_frames)
    given = video.image is not None or video.video is not None
    return Job(
        source=source,
        prompt=_prompt(args, video.prompts, source),
        negative_prompt=args.negative_prompt if video.negative_prompt is None else video.negative_prompt,
        image=video.image if given else args.image,
        video=video.video if given else args.video,
        settings=settings,
        seed_drawn=drawn,
        outputs=Outputs(video=args.out / f"{video.name}.mp4"),
    )


def _prompt(args: argparse.Namespace, prompts: tuple[str, ...], source: str) -> "str | PromptSchedule":
    """A single text, or a schedule if there are several."""
    if len(prompts) == 1:
        return prompts[0]
    from helios_jax.sampling.prompts import PromptSchedule

    try:
        return PromptSchedule(prompts=prompts, chunks_per_prompt=args.chunks_per_prompt, blend_chunks=args.blend_chunks)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _seed(seed: int) -> tuple[int, bool]:
    """The seed, drawn if it is -1, and whether it was drawn."""
    return (secrets.randbelow(2**32), True) if seed < 0 else (seed, False)


def _inputs(args: argparse.Namespace, jobs: list[Job]) -> dict[str, Path]:
    """Every file that is read, by the flag or line that names it."""
    found: dict[str, Path] = {f"--lora (number {i})": file for i, (file, _) in enumerate(args.lora, 1)}
    if args.resume is not None:
        found["--resume"] = args.resume
    found["--model"] = named_folder(args.model)
    if args.prompt_file is not None:
        found["--prompt_file"] = args.prompt_file
    for job in jobs:
        for name in ("image", "video"):
            path = getattr(job, name)
            if path is not None:
                found[f"--{name}" if path == getattr(args, name) else f"{job.source}: {name}"] = path
    return found
