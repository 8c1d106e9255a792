"""``helios-sample``: video from text, from an image, or continuing a clip.

    helios-sample --model=BestWishYsh/Helios-Distilled --prompt="A red fox trots through fresh snow." --out=fox.mp4
    helios-sample --model=CKPT --image=cat.png --prompt="The cat stretches." --out=cat.mp4
    helios-sample --model=CKPT --video=car.mp4 --prompt="A yellow car on a mountain road." --out=longer.mp4
    helios-sample --model=CKPT --prompt_file=prompts.csv --out=folder/
    helios-sample --model=CKPT --prompt="Waves on a beach." --out=endless.mp4 --stream
    helios-sample --model=CKPT --warmup

Next to every video, a contact sheet (.png) and the settings (.json) are written. Frames are on disk as soon as their
chunk is finished, so an interrupted run leaves a playable file. A prompt file gives one video per line (.txt) or per
id (.csv with the columns id, prompt and, for several successive prompts in one video, prompt_index); a second run
skips the videos that are finished. With --stream the video has no end unless --num_frames is given, and each line typed
on standard input becomes the prompt from the next chunk on.

On a GPU, compiled programs are kept on disk for later runs. --warmup compiles for the given size before
anything else and reports the time; without a prompt the command ends there.
"""

import argparse
import contextlib
import dataclasses
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app
from absl.flags import argparse_flags

from helios_jax.cli import Check, run_interruptible
from helios_jax.sampling.settings import SampleSettings, one_or_many

if TYPE_CHECKING:
    from helios_jax.sampling.pipeline import HeliosPipeline
    from helios_jax.sampling.request import Prompt, Request
    from helios_jax.sampling.stream import Chunk

DEFAULTS = SampleSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make.

    Attributes:
        prompt: The pipeline's ``prompt``.
        path: The mp4 file.
    """

    prompt: "Prompt"
    path: Path

    @property
    def record(self) -> Path:
        """The JSON file written when the video is finished."""
        return self.path.with_suffix(".json")


def plan_jobs(args: argparse.Namespace) -> list[Job]:
    """The videos that the arguments ask for, without those that an earlier run finished.

    Raises:
        ValueError: The arguments contradict each other, or the prompt file cannot be used.
        FileExistsError: The file of a single video exists.
    """
    if args.prompt_file is None:
        if args.prompt is None and args.warmup:
            return []
        if args.out is None:
            raise ValueError("give --out, the mp4 (or, with --prompt_file, the folder) to write")
        if args.prompt is None:
            raise ValueError("give --prompt or --prompt_file; for a video without text use --prompt=''")
        if args.out.suffix != ".mp4":
            raise ValueError(f"--out={args.out} must end in .mp4 (a folder goes with --prompt_file)")
        if args.out.exists() and not args.overwrite:
            raise FileExistsError(f"{args.out} exists; choose another --out or pass --overwrite")
        return [Job(prompt=args.prompt, path=args.out)]
    if args.prompt is not None or args.stream:
        raise ValueError("--prompt_file makes finished videos of its own prompts: drop --prompt and --stream")
    if args.out.suffix == ".mp4":
        raise ValueError(f"--out={args.out} must be a folder: a prompt file makes one video per prompt")
    from helios_jax.sampling.prompts import read_prompt_file

    options = {"chunks_per_prompt": args.chunks_per_prompt, "blend_chunks": args.blend_chunks}
    schedules = read_prompt_file(args.prompt_file, **options)
    jobs = [Job(prompt=schedule, path=args.out / f"{name}.mp4") for name, schedule in schedules.items()]
    left = [job for job in jobs if args.overwrite or not job.record.exists()]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} videos are finished already")
    return left


def settings_of(args: argparse.Namespace) -> SampleSettings:
    """The sample settings among the arguments: flags that have the name of a field."""
    names = vars(DEFAULTS).keys() & vars(args).keys()
    return SampleSettings(**{name: getattr(args, name) for name in names})


def sample(pipe: "HeliosPipeline", job: Job, args: argparse.Namespace, check_interrupted: Check = lambda: None) -> None:
    """Makes one video, chunk by chunk; ``check_interrupted`` is called after each."""
    from helios_jax.media.contact_sheet import ContactSheet
    from helios_jax.media.video_writer import VideoWriter
    from helios_jax.sampling.prompts import NEGATIVE_PROMPT, PromptSchedule

    settings = settings_of(args)
    if settings.num_frames is None and isinstance(job.prompt, PromptSchedule) and len(job.prompt.prompts) > 1:
        settings = dataclasses.replace(settings, num_frames=job.prompt.num_chunks * pipe.chunk_frames)
    elif settings.num_frames is None and not args.stream:
        settings = dataclasses.replace(settings, num_frames=DEFAULTS.num_frames)
    negative_prompt = NEGATIVE_PROMPT if args.negative_prompt is None else args.negative_prompt
    start = time.monotonic()
    stream = pipe.stream(
        job.prompt,
        negative_prompt,
        image=args.image,
        video=args.video,
        settings=settings,
        # A prompt typed during a chunk is to take effect in the next one; without live prompts the device never idles.
        lookahead=0 if args.stream else 1,
        progress=sys.stderr.isatty(),
    )
    _set_aside(job.path)
    end = stream.request.num_frames
    with (
        VideoWriter(job.path, fps=args.fps, overwrite=args.overwrite) as video,
        ContactSheet(job.path.with_suffix(".png"), fps=args.fps, overwrite=True) as sheet,
        _typed_prompts(args.stream) as typed,
    ):
        for chunk in stream:
            frames = chunk.frames[0] if end is None else chunk.frames[0, : end - video.num_frames]
            video.write(frames)
            sheet.write(frames)
            print(f"{job.path.name}: {_describe(chunk, video.num_frames, args.fps)}", flush=True)
            check_interrupted()
            for prompt in typed():
                stream.set_prompt(prompt, blend_chunks=args.blend_chunks)
                print(f"prompt from chunk {chunk.index + 1} on: {prompt}", flush=True)
    _write_record(job, args, stream.request, negative_prompt, video.num_frames, time.monotonic() - start)


def _describe(chunk: "Chunk", num_frames: int, fps: float) -> str:
    speed = chunk.frames.shape[1] / chunk.seconds
    return f"chunk {chunk.index}, {num_frames} frames ({num_frames / fps:.1f} s of video), {speed:.2f} frames/s"


def _set_aside(path: Path) -> None:
    """Renames the file that an interrupted run left at ``path``, so that a rerun does not overwrite it."""
    if path.exists() and not path.with_suffix(".json").exists():
        number = 1
        while (aside := path.with_name(f"{path.stem}.interrupted{number}{path.suffix}")).exists():
            number += 1
        path.rename(aside)
        print(f"{path.name} was left by an interrupted run and is now {aside.name}")


def _write_record(
    job: Job, args: argparse.Namespace, request: "Request", negative_prompt: str, num_frames: int, seconds: float
) -> None:
    """Writes how the video was made; the file's presence marks the video as finished."""
    from helios_jax import __version__
    from helios_jax.sampling.prompts import PromptSchedule

    prompt = dataclasses.asdict(job.prompt) if isinstance(job.prompt, PromptSchedule) else job.prompt
    record = {
        "prompt": prompt,
        "negative_prompt": negative_prompt if request.guided else None,
        "model": args.model,
        "lora": args.lora,
        "image": args.image,
        "video": args.video,
        "seed": args.seed,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "amplify_first_chunk": request.amplify_first_chunk,
        "skip_first_chunk": request.skip_first_chunk,
        "height": request.height,
        "width": request.width,
        "frames": num_frames,
        "fps": args.fps,
        "seconds": round(seconds, 3),
        "helios_jax": __version__,
    }
    job.record.write_text(json.dumps(record, indent=2) + "\n")


@contextlib.contextmanager
def _typed_prompts(enabled: bool) -> Iterator[Callable[[], list[str]]]:
    """A function that returns the lines typed on standard input since its last call, without waiting."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line.strip())

    # A thread, since reading from a terminal blocks; a daemon, so it does not keep the process alive.
    if enabled:
        threading.Thread(target=read, daemon=True).start()

    def typed() -> list[str]:
        found = []
        while not lines.empty():
            found.append(lines.get())
        return [line for line in found if line]

    yield typed


def _lora(text: str) -> tuple[str, float]:
    """FILE or FILE:SCALE."""
    path, _, scale = text.rpartition(":")
    return (path, float(scale)) if path and not Path(text).exists() else (text, 1.0)


def _steps(text: str) -> int | tuple[int, ...] | None:
    """N, or N,N,N for a pyramid."""
    return one_or_many([int(part) for part in text.split(",")])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; ``argv[0]`` is the program."""
    parser = argparse_flags.ArgumentParser(
        prog="helios-sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, help: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", help=help, **options)

    flag = argparse.BooleanOptionalAction
    add("model", "checkpoint folder in either layout, or hub id", required=True)
    add("out", "mp4 to write; with --prompt_file a folder", type=Path)
    add("prompt", "text of the video")
    add("prompt_file", "txt or csv with the texts of many videos", type=Path)
    add("negative_prompt", "used with guidance only (default: the published one)")
    add("image", "image to start from (I2V)")
    add("video", "clip to continue, at least 33 frames (V2V)")
    add("num_frames", f"frames wanted, rounded up to whole chunks of 33 (default {DEFAULTS.num_frames})", type=int)
    add("height", f"pixel rows (default {DEFAULTS.height})", type=int, default=DEFAULTS.height)
    add("width", f"pixel columns (default {DEFAULTS.width})", type=int, default=DEFAULTS.width)
    add("steps", "network calls per level, 2,2,2 or one number for Base (default: the model's)", type=_steps)
    add("guidance_scale", "guidance is on above 1 (default: the model's)", type=float)
    add("amplify_first_chunk", "twice the steps in the first chunk (default: the model's)", action=flag)
    add("skip_first_chunk", "take the anchor from the second chunk", action=flag, default=False)
    add("keep_first_frame", "keep the first frame in the context", action=flag, default=True)
    add("chunks_per_prompt", "chunks of each prompt of a csv file (default 7)", type=int, default=7)
    add("blend_chunks", "chunks over which a new prompt is blended in (default 3)", type=int, default=3)
    length = DEFAULTS.max_text_tokens
    add("max_text_tokens", f"length that texts are padded or cut to (default {length})", type=int, default=length)
    add("seed", "seed of all draws (default 0)", type=int, default=0)
    add("lora", "LoRA file to merge, FILE or FILE:SCALE; may be repeated", type=_lora, action="append", default=[])
    add("dtype", "compute dtype of transformer and text encoder", choices=("bfloat16", "float32"), default="bfloat16")
    add("vae_dtype", "compute dtype of the VAE", choices=("bfloat16", "float32"), default="bfloat16")
    add("vae_slice_frames", "latent frames the VAE handles at a time, to save memory", type=int)
    add("fps", "frames per second of the file (default 24)", type=int, default=24)
    add("stream", "no end unless --num_frames is given; lines on standard input are new prompts", action="store_true")
    add("warmup", "compile before sampling; with no prompt, only compile", action="store_true")
    add("cache", "folder for compiled programs (default: helios_jax in the user's cache folder)", type=Path)
    add("overwrite", "replace files that exist", action="store_true")
    return parser.parse_args(argv[1:])


def main(args: argparse.Namespace) -> int:
    """Makes the videos; returns the exit code."""

    def work(check_interrupted: Check) -> None:
        jobs = plan_jobs(args)
        if not jobs and not args.warmup:
            return
        from helios_jax.compilation import use_compilation_caches
        from helios_jax.sampling.pipeline import HeliosPipeline

        use_compilation_caches(args.cache)
        start = time.monotonic()
        pipe = HeliosPipeline.from_pretrained(args.model, dtype=args.dtype, vae_dtype=args.vae_dtype)
        for path, scale in args.lora:
            pipe.load_lora(path, scale)
        print(f"{args.model}: loaded in {time.monotonic() - start:.1f} s", flush=True)
        if args.warmup:
            conditioning = "image" if args.image else "video" if args.video else None
            seconds = pipe.compile(conditioning=conditioning, settings=settings_of(args))
            print(f"compiled for {args.height}x{args.width} in {seconds:.1f} s", flush=True)
        for job in jobs:
            sample(pipe, job, args, check_interrupted)

    return run_interruptible("helios-sample", work)


def run() -> None:
    """Entry point of ``helios-sample``."""
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    run()
