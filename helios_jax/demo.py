"""Every way to sample, on a CPU in half a minute: from text, from an image, from a clip, and with a change of prompt.

    python -m helios_jax.demo --out=demo_out [--clip=car.mp4] [--num_frames=132]

text.mp4     from a caption
image.mp4    from the first frame of a rendered scene and its caption
clip.mp4     the continuation of a scene's first 33 frames, or of --clip
switch.mp4   a circle that is told to turn round while it moves

Next to each video lies its contact sheet. The model is helios-tiny, which comes with the package. An installation
without it writes a checkpoint with RANDOM weights in the same layout: the videos are then noise, but sizes, schedule
and files are the same. The first run compiles; later runs find the programs in the user's cache folder.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from helios_jax.arguments import Parser, path, whole
from helios_jax.checkpoints.shipped import default_checkpoint
from helios_jax.cli import Check, run_interruptible, run_program

if TYPE_CHECKING:
    from helios_jax.sampling.pipeline import HeliosPipeline

PROGRAM = "helios_jax.demo"

WORLD = 2026
"""Seed of the scenes; no recipe trains on it."""

TEXT = (
    "A large red circle glides slowly to the left, and a small blue star moves up at a fast pace. They bounce off the "
    "borders, and those named first pass in front. The background is plain cream. The light is bright."
)
RIGHT, LEFT = (
    f"A large red circle glides {where} slowly. At the edges it bounces back. The background is plain cream. The light "
    "is bright."
    for where in ("to the right", "to the left")
)

MARK = "written_by_helios_demo.txt"
"""A file that marks the folder as a finished checkpoint of the demo; written last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One video.

    Attributes:
        name: Of its file.
        prompt: Its text.
        then: The text that replaces it after half of the video; "": none does.
        inputs: The image or the clip that it starts from, by the name of the pipeline's argument.
    """

    name: str
    prompt: str
    then: str = ""
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)


def tasks(clip: Path | None, size: tuple[int, int]) -> list[Task]:
    """The videos, in their order.

    Args:
        clip: A clip of the user to continue; ``None``: the beginning of a scene.
        size: Height and width of rendered scenes.
    """
    from helios_jax.data.moving_shapes import caption, render, sample_scene

    still = sample_scene(WORLD, 2, num_shapes=1, style="textured")
    moving = sample_scene(WORLD, 4, num_shapes=2, style="textured")
    return [
        Task(name="text", prompt=TEXT),
        Task(name="image", prompt=caption(still), inputs={"image": render(still, 1, *size)[0]}),
        Task(name="clip", prompt=caption(moving), inputs={"video": clip or render(moving, 33, *size)}),
        Task(name="switch", prompt=RIGHT, then=LEFT),
    ]


def main(args: argparse.Namespace) -> int:
    """Makes the videos; returns the exit code."""
    return run_interruptible(PROGRAM, lambda check: _work(args, check))


def _work(args: argparse.Namespace, check_interrupted: Check) -> None:
    start = time.perf_counter()
    from helios_jax.compilation import use_compilation_caches
    from helios_jax.sampling.pipeline import HeliosPipeline

    use_compilation_caches()
    model = demo_checkpoint(args.out / "random_checkpoint")
    pipe = HeliosPipeline.from_pretrained(model, dtype="auto", vae_dtype="auto")
    size = pipe.defaults.height, pipe.defaults.width
    work = tasks(args.clip, size)
    print(f"{model}: loaded in {time.perf_counter() - start:.1f} s", flush=True)
    kinds: tuple[Literal["image", "video"] | None, ...] = (None, "image", "video")
    seconds = sum(pipe.compile(conditioning=kind) for kind in kinds)
    print(f"compiled for {size[0]}x{size[1]}, or read from the cache, in {seconds:.1f} s", flush=True)
    for task in work:
        seconds = _make(pipe, task, args.out, args.num_frames, check_interrupted)
        frames = f"{args.num_frames} frames in {seconds:.1f} s, {args.num_frames / seconds:.0f} frames/s"
        print(f"{args.out / task.name}.mp4: {frames}", flush=True)
        print(f"    {task.prompt}" + (f"\n    then: {task.then}" if task.then else ""), flush=True)
    print(f"everything took {time.perf_counter() - start:.1f} s; contact sheets are in {args.out}/*.sheet.png")
    if default_checkpoint() is None:
        print("(random weights: the frames are noise)")


def _make(pipe: "HeliosPipeline", task: Task, out: Path, num_frames: int, check_interrupted: Check) -> float:
    """Writes a video and its contact sheet; returns the seconds from the call to the closed files."""
    from helios_jax.media.contact_sheet import ContactSheet
    from helios_jax.media.pixels import enlargement
    from helios_jax.media.video_writer import VideoWriter

    start = time.perf_counter()
    stream = pipe.stream(
        task.prompt,
        **task.inputs,
        num_frames=num_frames,
        exact_frames=True,
        # A prompt is to take effect in the very next chunk; otherwise the device works while frames are written.
        lookahead=0 if task.then else 1,
        on_step=lambda _: check_interrupted(),
    )
    half = -(-num_frames // pipe.chunk_frames) // 2
    enlarge = enlargement(pipe.defaults.height, pipe.defaults.width)
    with (
        VideoWriter(out / f"{task.name}.mp4", overwrite=True, enlarge=enlarge) as video,
        ContactSheet(out / f"{task.name}.sheet.png", overwrite=True) as sheet,
        stream,
    ):
        for chunk in stream:
            if task.then and chunk.index + 1 == half:
                stream.set_prompt(task.then, blend_chunks=0)
            video.write(chunk.frames[0])
            sheet.write(chunk.frames[0])
    return time.perf_counter() - start


def demo_checkpoint(folder: Path) -> str | Path:
    """The default checkpoint; in an installation without it, one with random weights, written to a folder.

    Args:
        folder: Where the random weights are written, unless an earlier call has done so.

    Returns:
        The name of the default checkpoint, or ``folder``.

    Raises:
        FileExistsError: The folder exists and is not a checkpoint that this program finished.
    """
    return default_checkpoint() or _random_checkpoint(folder)


def _random_checkpoint(folder: Path) -> Path:
    from helios_jax.checkpoints.components import write_json
    from helios_jax.checkpoints.random import write_random_checkpoint, write_word_tokenizer
    from helios_jax.config import SamplingDefaults
    from helios_jax.config.defaults import FILE
    from helios_jax.data.moving_shapes import vocabulary
    from helios_jax.data.moving_shapes.styles import CAPTION_TOKENS

    mark = folder / MARK
    if mark.is_file():
        print(f"helios-tiny is not installed: using the small checkpoint with RANDOM weights in {folder}")
        return folder
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists and is not a finished checkpoint of this demo; choose another --out")
    write_random_checkpoint(folder)
    write_word_tokenizer(folder, vocabulary(absences=True))
    tokens = CAPTION_TOKENS["textured"]
    defaults = SamplingDefaults(height=64, width=64, max_text_tokens=tokens, style="textured")
    write_json(folder / FILE, defaults.to_json())
    mark.write_text("Random weights, written by python -m helios_jax.demo.\n")
    print(f"helios-tiny is not installed: wrote a small checkpoint with RANDOM weights to {folder}; expect noise")
    return folder


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog=PROGRAM, description=__doc__)
    out = Path("demo_out")
    parser.add_argument("--out", type=path("--out"), default=out, help=f"folder to write (default {out})")
    clip_help = "clip to continue, at least 33 frames (default: the beginning of a scene)"
    parser.add_argument("--clip", type=path("--clip"), help=clip_help)
    frames = whole("--num_frames", at_least=1)
    parser.add_argument("--num_frames", type=frames, default=132, help="frames of each video (default 132)")
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    run_program(PROGRAM, main, _parse)
