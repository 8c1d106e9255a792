"""``helios-sample``: video from text, from an image, or continuing a clip.

    helios-sample --model=BestWishYsh/Helios-Distilled --prompt="A red fox trots through fresh snow." --out=fox.mp4
    helios-sample --model=CKPT --image=cat.png --prompt="The cat stretches." --out=cat.mp4
    helios-sample --model=CKPT --video=car.mp4 --prompt="A yellow car on a mountain road." --out=longer.mp4
    helios-sample --model=CKPT --prompt_file=prompts.csv --out=folder/
    helios-sample --model=CKPT --prompt="Waves on a beach." --out=endless.mp4 --stream
    helios-sample --model=CKPT --warmup

Every video comes with a contact sheet (.png) and what made it (.json). Frames are on disk as soon as their chunk
is done: an interrupted run leaves a playable file. A prompt file makes one video per line (.txt) or per id (.csv
with the columns id, prompt and, for prompts that follow one another in one video, prompt_index); a second run
goes on with those that are not finished. With --stream the video has no end unless --num_frames is given, and each
line typed on standard input becomes the prompt from the next chunk on.

On a GPU, compiled programs are kept on disk for later runs. --warmup compiles for the given size before
anything else and reports the time; without a prompt it does nothing more.
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

if TYPE_CHECKING:
    from helios_jax.sampling.pipeline import HeliosPipeline
    from helios_jax.sampling.request import Prompt
    from helios_jax.sampling.stream import Chunk, Stream

NEGATIVE_PROMPT = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
"""The negative prompt that Wan2.1 and Helios publish for use with guidance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make.

    Attributes:
        prompt: What the pipeline takes as prompt.
        path: The mp4.
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
        ValueError: Arguments that do not go together, or a prompt file that cannot be used.
        FileExistsError: A single video whose file exists.
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


def sample(pipe: "HeliosPipeline", job: Job, args: argparse.Namespace, check_interrupted: Check = lambda: None) -> None:
    """Makes one video, chunk by chunk; ``check_interrupted`` is called after each."""
    from helios_jax.media.contact_sheet import ContactSheet
    from helios_jax.media.video_writer import VideoWriter
    from helios_jax.sampling.prompts import PromptSchedule

    num_frames = args.num_frames
    if num_frames is None and isinstance(job.prompt, PromptSchedule) and len(job.prompt.prompts) > 1:
        num_frames = job.prompt.num_chunks * 33
    elif num_frames is None and not args.stream:
        num_frames = 132
    start = time.monotonic()
    stream = pipe.stream(
        job.prompt,
        args.negative_prompt,
        image=args.image,
        video=args.video,
        num_frames=num_frames,
        height=args.height,
        width=args.width,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        amplify_first_chunk=args.amplify_first_chunk,
        skip_first_chunk=args.skip_first_chunk,
        keep_first_frame=args.keep_first_frame,
        seed=args.seed,
        max_text_tokens=args.max_text_tokens,
        vae_slice_frames=args.vae_slice_frames,
        lookahead=0 if args.stream else 1,
        progress=sys.stderr.isatty(),
    )
    _set_aside(job.path)
    left = (stream.request.num_chunks or 0) * 33
    left = (left - 1) // 4 * 4 + 1 if left else None
    with (
        VideoWriter(job.path, fps=args.fps, overwrite=args.overwrite) as video,
        ContactSheet(job.path.with_suffix(".png"), fps=args.fps, overwrite=True) as sheet,
        _typed_prompts(args.stream) as typed,
    ):
        for chunk in stream:
            frames = chunk.frames[0] if left is None else chunk.frames[0, : left - video.num_frames]
            video.write(frames)
            sheet.write(frames)
            print(f"{job.path.name}: {_describe(chunk, video.num_frames, args.fps)}", flush=True)
            check_interrupted()
            for prompt in typed():
                stream.set_prompt(prompt, blend_chunks=args.blend_chunks)
                print(f"prompt from chunk {chunk.index + 1} on: {prompt}", flush=True)
    _write_record(job, stream, args, video.num_frames, time.monotonic() - start)


def _describe(chunk: "Chunk", num_frames: int, fps: float) -> str:
    speed = chunk.frames.shape[1] / chunk.seconds
    return f"chunk {chunk.index}, {num_frames} frames ({num_frames / fps:.1f} s of video), {speed:.2f} frames/s"


def _set_aside(path: Path) -> None:
    """Renames what an interrupted run left at ``path``, so that making the video again loses nothing."""
    if path.exists() and not path.with_suffix(".json").exists():
        number = 1
        while (aside := path.with_name(f"{path.stem}.interrupted{number}{path.suffix}")).exists():
            number += 1
        path.rename(aside)
        print(f"{path.name} was left by an interrupted run and is now {aside.name}")


def _write_record(job: Job, stream: "Stream", args: argparse.Namespace, num_frames: int, seconds: float) -> None:
    """Writes what made the video; its presence marks the video as finished."""
    from helios_jax import __version__

    request = stream.request
    from helios_jax.sampling.prompts import PromptSchedule

    prompt = dataclasses.asdict(job.prompt) if isinstance(job.prompt, PromptSchedule) else job.prompt
    record = {
        "prompt": prompt,
        "negative_prompt": args.negative_prompt if request.guided else None,
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
    """Lines typed on standard input since the last call, read without waiting for them."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line.strip())

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


def _steps(text: str) -> int | tuple[int, ...]:
    """N, or N,N,N for a pyramid."""
    numbers = tuple(int(part) for part in text.split(","))
    return numbers[0] if len(numbers) == 1 else numbers


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
    add("negative_prompt", "used with guidance only (default: the published one)", default=NEGATIVE_PROMPT)
    add("image", "image to start from (I2V)")
    add("video", "clip to continue, at least 33 frames (V2V)")
    add("num_frames", "frames wanted, rounded up to whole chunks of 33 (default 132)", type=int)
    add("height", "pixel rows (default 384)", type=int, default=384)
    add("width", "pixel columns (default 640)", type=int, default=640)
    add("steps", "network calls per level, 2,2,2 or one number for Base (default: the model's)", type=_steps)
    add("guidance_scale", "guidance is on above 1 (default: the model's)", type=float)
    add("amplify_first_chunk", "twice the steps in the first chunk (default: the model's)", action=flag)
    add("skip_first_chunk", "take the anchor from the second chunk", action=flag, default=False)
    add("keep_first_frame", "keep the first frame in the context", action=flag, default=True)
    add("chunks_per_prompt", "chunks of each prompt of a csv file (default 7)", type=int, default=7)
    add("blend_chunks", "chunks over which a new prompt is blended in (default 3)", type=int, default=3)
    add("max_text_tokens", "length that texts are padded or cut to (default 512)", type=int, default=512)
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
            seconds = pipe.compile(
                height=args.height,
                width=args.width,
                guidance_scale=args.guidance_scale,
                max_text_tokens=args.max_text_tokens,
                conditioning="image" if args.image else "video" if args.video else None,
                vae_slice_frames=args.vae_slice_frames,
            )
            print(f"compiled for {args.height}x{args.width} in {seconds:.1f} s", flush=True)
        for job in jobs:
            sample(pipe, job, args, check_interrupted)

    return run_interruptible("helios-sample", work)


def run() -> None:
    """Entry point of ``helios-sample``."""
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    run()
