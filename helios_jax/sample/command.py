"""The work of ``helios-sample``: checks, loads the checkpoint, and makes one video after the other."""

import argparse
import contextlib
import functools
import itertools
import sys
import time
from collections.abc import Generator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from helios_jax.cli import Check, run_interruptible, run_program
from helios_jax.sample.flags import fill_in, parse, settings_of
from helios_jax.sample.jobs import check_inputs, plan_jobs
from helios_jax.sample.live import TypedPrompts

if TYPE_CHECKING:
    from helios_jax.sample.check import CheckedJob
    from helios_jax.sample.claims import Claim
    from helios_jax.sampling.pipeline import HeliosPipeline
    from helios_jax.sampling.progress import Progress
    from helios_jax.sampling.stream import Chunk, Stream

PROGRAM = "helios-sample"


def run() -> None:
    """Entry point of ``helios-sample``."""
    run_program(PROGRAM, main, parse)


def main(args: argparse.Namespace) -> int:
    """Makes the videos; returns the exit code."""
    return run_interruptible(PROGRAM, functools.partial(_work, args))


def _work(args: argparse.Namespace, check_interrupted: Check) -> None:
    fill_in(args)
    jobs = plan_jobs(args)
    check_inputs(args, jobs)
    from helios_jax.sample.check import check_device, check_jobs

    model, checked = check_jobs(args, jobs)
    left = [job for job in checked if args.overwrite or not job.finished()]
    if len(left) < len(checked):
        print(f"{len(checked) - len(left)} of {len(checked)} videos are finished already")
    if not left and not args.warmup:
        return
    device = check_device(args, model)
    with contextlib.closing(_claimed(left, args)) as claimed:
        # The first one is claimed before the weights are loaded, in case another process makes it.
        first = next(claimed, None)
        if first is None and not args.warmup:
            return
        print(f"{args.model} on {device}; loading", flush=True)
        pipe = _load(args)
        check_interrupted()
        if args.warmup:
            conditioning = "image" if args.image else "video" if args.video else None
            seconds = pipe.compile(conditioning=conditioning, settings=settings_of(args, seed=0))
            print(f"compiled for {args.height}x{args.width} in {seconds:.1f} s", flush=True)
        else:
            print("the first chunk compiles programs that are not cached yet", flush=True)
        for job, claim in itertools.chain([first] if first else [], claimed):
            if args.prompt_file is not None:
                number = left.index(job) + 1
                print(
                    f"video {number} of {len(left)}, {job.job.outputs.video.name}: seed {job.settings.seed}", flush=True
                )
            sample(pipe, job, claim, args, check_interrupted)


def _load(args: argparse.Namespace) -> "HeliosPipeline":
    from helios_jax.compilation import use_compilation_caches
    from helios_jax.sampling.pipeline import HeliosPipeline

    use_compilation_caches(args.cache)
    start = time.monotonic()
    pipe = HeliosPipeline.from_pretrained(
        args.model,
        dtype=args.dtype,
        vae_dtype=args.vae_dtype,
        park=args.park,
        revision=args.revision,
        cache_dir=args.cache_dir,
        allow_cpu=args.allow_cpu,
    )
    for number, (path, scale) in enumerate(args.lora, 1):
        pipe.load_lora(path, name=f"{path.stem} ({number})", scale=scale, merge=args.merge_lora)
    print(f"{args.model}: loaded in {time.monotonic() - start:.1f} s", flush=True)
    return pipe


def _claimed(jobs: "list[CheckedJob]", args: argparse.Namespace) -> "Generator[tuple[CheckedJob, Claim]]":
    """The videos that no other process is making or has made, each claimed until the next is requested."""
    from helios_jax.sample.claims import Busy, Claim

    for job in jobs:
        try:
            claim = Claim(job.job.outputs, job.record)
        except Busy as error:
            if args.prompt_file is None:
                raise
            print(f"{error}, which is left to finish it", flush=True)
            continue
        with claim:
            if (not args.overwrite or job.record_changed()) and job.finished():
                print(f"{job.job.outputs.video} was finished by another process", flush=True)
                continue
            yield job, claim


def sample(
    pipe: "HeliosPipeline",
    job: "CheckedJob",
    claim: "Claim",
    args: argparse.Namespace,
    check_interrupted: Check = lambda: None,
) -> None:
    """Makes one video, chunk by chunk; ``check_interrupted`` is called after each step."""
    from helios_jax.sample.records import facts_of_run
    from helios_jax.sampling.progress import Progress

    outputs = job.job.outputs
    start = time.monotonic()
    with Progress(enabled=sys.stderr.isatty()) as progress:
        if job.job.seed_drawn and args.prompt_file is None:
            progress.write(f"{outputs.video.name}: seed {job.settings.seed}")
        new: dict[str, Any] = {
            "prompt": job.job.prompt,
            "negative_prompt": job.negative_prompt,
            "image": job.job.image,
            "video": job.job.video,
        }
        stream = pipe.stream(
            **(new if job.resume is None else {"resume": job.resume}),
            settings=job.settings,
            # A prompt typed in a chunk is to take effect in the next one; without live prompts the device never idles.
            lookahead=0 if args.stream else 1,
            on_step=progress.on_step(lambda _: check_interrupted()),
            on_chunk=progress.on_chunk(None),
        )
        if job.resume is not None and isinstance(job.job.prompt, str):
            stream.set_prompt(job.job.prompt, blend_chunks=args.blend_chunks)
        job.make_room()
        progress.start(stream)
        num_frames = _write_chunks(stream, job, args, progress, check_interrupted)
    claim.finish({**job.record, "frames": num_frames, **facts_of_run(time.monotonic() - start)})
    seconds = num_frames / args.fps
    print(
        f"wrote {outputs.video}: {num_frames} frames, {float(seconds):.1f} s of video "
        f"(contact sheet {outputs.sheet.name}, settings {outputs.record.name})",
        flush=True,
    )


def _write_chunks(
    stream: "Stream", job: "CheckedJob", args: argparse.Namespace, progress: "Progress", check_interrupted: Check
) -> int:
    """Writes the frames to the files; returns their number."""
    from helios_jax.media.contact_sheet import ContactSheet
    from helios_jax.media.pixels import enlargement
    from helios_jax.media.video_writer import VideoWriter

    outputs = job.job.outputs
    typed = TypedPrompts.from_standard_input() if args.stream else None
    # The end of a pipe means that no prompts follow; it ends the video only if the video has no length. Ctrl-D
    # always ends it.
    ends_with_input = args.num_frames is None or (sys.stdin is not None and sys.stdin.isatty())
    shown = 0  # the first chunk that shows the newest prompt unblended
    end = job.frames
    enlarge = args.enlarge or enlargement(stream.request.height, stream.request.width)
    with (
        VideoWriter(outputs.video, fps=args.fps, enlarge=enlarge) as video,
        ContactSheet(outputs.sheet, fps=args.fps) as sheet,
    ):
        for chunk in stream:
            frames = chunk.frames[0] if end is None else chunk.frames[0, : end - video.num_frames]
            video.write(frames)
            sheet.write(frames)
            progress.write(f"{outputs.video.name}: {_describe(chunk, video.num_frames, args.fps)}")
            for prompt in typed.new() if typed else ():
                stream.set_prompt(prompt, blend_chunks=args.blend_chunks)
                shown = chunk.index + max(1, args.blend_chunks)
                progress.write(f"prompt from chunk {chunk.index + 1} on: {prompt}")
            if args.save_state is not None:
                stream.state().save(args.save_state)  # after the frames and the new prompts
            check_interrupted()
            if typed is None:
                continue
            if ends_with_input and typed.ended and chunk.index >= shown:
                progress.write("the input has ended, and so does the video")
                break
    return video.num_frames


def _describe(chunk: "Chunk", num_frames: int, fps: float | Fraction) -> str:
    speed = chunk.frames.shape[1] / chunk.seconds
    return f"chunk {chunk.index}, {num_frames} frames ({float(num_frames / fps):.1f} s of video), {speed:.2f} frames/s"
