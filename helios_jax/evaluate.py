"""``helios-evaluate``: measures the videos of a checkpoint, or videos in files; see ``helios-evaluate --help``."""

import argparse
import functools
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from helios_jax.cli import Check, run_interruptible, run_program
from helios_jax.evaluation.flags import PROGRAM, check, parse
from helios_jax.extras import require_extra

if TYPE_CHECKING:
    import numpy as np

    from helios_jax.evaluation.metrics import VideoInfo
    from helios_jax.evaluation.suites.base import Subject, Suite
    from helios_jax.evaluation.worlds import World, WorldSettings
    from helios_jax.sampling.pipeline import HeliosPipeline

LEAVES = "videos that have a record are not measured again: the same command resumes"


def run() -> None:
    """Entry point of ``helios-evaluate``."""
    run_program(PROGRAM, main, parse, leaves=LEAVES)


def main(args: argparse.Namespace) -> int:
    """Evaluates; returns the exit code."""
    return run_interruptible(PROGRAM, functools.partial(_work, args), leaves=LEAVES)


def _work(args: argparse.Namespace, check_interrupted: Check) -> None:
    check(args)
    if args.suite == "heliosbench":
        require_extra("evaluate", "the suite heliosbench")
    from helios_jax.evaluation.evaluate import evaluate
    from helios_jax.evaluation.runner import Options

    subject, settings = _subject(args, check_interrupted)
    suite = _suite(args, subject)
    title = f"{args.suite}: {args.model or args.videos_dir or args.files[0]}"
    options = Options(
        processes=args.processes,
        videos_folder=args.out / "videos" if args.save_videos else None,
        on_progress=_Progress(check_interrupted),
    )
    scores = evaluate(suite, args.out, settings, title=title, options=options, overwrite=args.overwrite)
    for heading, rows in suite.tables(scores):
        print(heading)
        for name, value in rows:
            print(f"  {name:36} {value}")
    print(f"wrote {args.out / 'scores.json'} and {args.out / 'report.html'}", flush=True)


def _subject(args: argparse.Namespace, check_interrupted: Check) -> "tuple[Subject, dict[str, Any]]":
    """Whose videos are evaluated, and the settings that decide the records."""
    from helios_jax.evaluation.metrics import load_metric
    from helios_jax.evaluation.sources import find_videos
    from helios_jax.evaluation.suites.base import Subject

    metrics = tuple(map(load_metric, args.metric))
    names = ("suite", "world", "style", "num_shapes", "num_frames", "continue_scenes", "rules", "metric")
    settings = {name: getattr(args, name) for name in names}
    settings["prompt_file"] = None if args.prompt_file is None else str(args.prompt_file.absolute())
    if args.model is None:
        files = tuple(find_videos(args.videos_dir, args.files))
        settings |= {"files": [[str(file.absolute()), file.stat().st_size] for file in files]}
        settings |= {"chunk_frames": args.chunk_frames}
        return Subject(sampler=None, files=files, chunk_frames=args.chunk_frames, metrics=metrics), settings
    sampler, chunk_frames, more = _sampler(args, check_interrupted)
    subject = Subject(sampler=sampler, batch=args.batch, chunk_frames=chunk_frames, metrics=metrics)
    return subject, settings | more


def _sampler(args: argparse.Namespace, check_interrupted: Check) -> Any:
    """How videos are sampled, the frames of a chunk, and the settings of both; reads no weights."""
    from helios_jax.checkpoints.pipelines import compute_dtype
    from helios_jax.checkpoints.settings import read_settings
    from helios_jax.evaluation.sources import Sampler
    from helios_jax.sample.records import content_digest
    from helios_jax.sampling.request import RequestDefaults, SampleInputs
    from helios_jax.sampling.settings import SampleSettings

    model = read_settings(args.model, revision=args.revision, cache_dir=args.cache_dir)
    if model.text_encoder is None:
        raise ValueError(f"{args.model} has no text encoder, so no prompts can be read")
    settings = SampleSettings(
        height=args.height,
        width=args.width,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        max_text_tokens=args.max_text_tokens,
        seed=args.seed,
    )
    request = RequestDefaults.of(model).resolve(SampleInputs(prompt=""), settings, has_text_encoder=True)
    dtypes = {name: str(compute_dtype(getattr(args, name), name)) for name in ("dtype", "vae_dtype")}
    sampler = Sampler(
        load=functools.cache(functools.partial(_load, args, settings, dtypes)),
        settings=settings,
        negative_prompt=args.negative_prompt,
        lookahead=0 if args.suite == "heliosbench" else 1,
        clip_of=_first_chunk(args) if args.continue_scenes else None,
        on_step=check_interrupted,
    )
    names = ("videos", "batch", "height", "width", "max_text_tokens", "seed", "negative_prompt")
    content = content_digest(model.folder)  # of a folder; a snapshot of the hub has its commit as its name
    recorded = {
        "model": args.model if content is None else os.path.realpath(model.folder),
        "model_content": content or model.folder.name,
        **{name: getattr(args, name) for name in names},
        "steps": list(request.steps),
        "guidance_scale": request.guidance_scale,
        **dtypes,
    }
    return sampler, model.vae.pixel_frames(model.config.history.chunk_frames), recorded


def _first_chunk(args: argparse.Namespace) -> "Callable[[VideoInfo], np.ndarray]":
    """Gives the first chunk of the scene that a video is named after."""
    world, _ = _world(args)
    return lambda video: world.frames(int(video.name))[: video.chunk_frames]


def _load(args: argparse.Namespace, settings: Any, dtypes: dict[str, str]) -> "HeliosPipeline":
    from helios_jax.compilation import use_compilation_caches
    from helios_jax.sampling.pipeline import HeliosPipeline

    use_compilation_caches()
    start = time.monotonic()
    pipe = HeliosPipeline.from_pretrained(
        args.model,
        dtype=dtypes["dtype"],
        vae_dtype=dtypes["vae_dtype"],
        revision=args.revision,
        cache_dir=args.cache_dir,
        allow_cpu=args.allow_cpu,
    )
    print(f"{args.model}: loaded in {time.monotonic() - start:.1f} s; the first chunk compiles programs", flush=True)
    if args.suite == "heliosbench":
        # Its speed is that of a warm process: prompts of all lengths have their programs beforehand.
        print(f"compiled in {pipe.compile(batch=args.batch, settings=settings):.1f} s", flush=True)
    return pipe


def _suite(args: argparse.Namespace, subject: "Subject") -> "Suite":
    """The suite of the arguments."""
    from helios_jax.evaluation.external import ExternalResults, read_results
    from helios_jax.evaluation.prompts import BenchmarkPrompt, read_prompts
    from helios_jax.evaluation.suites.base import scene_prompts, world_prompts
    from helios_jax.evaluation.suites.drift import DriftSuite
    from helios_jax.evaluation.suites.heliosbench import HeliosBenchSuite
    from helios_jax.evaluation.suites.moving_shapes import MovingShapesSuite

    world, scenes = _world(args)
    prompts: list[BenchmarkPrompt] | None = None
    if args.prompt_file is not None:
        prompts = read_prompts(args.prompt_file)[: args.videos]
    size = {"height": args.height, "width": args.width}
    if args.suite == "moving_shapes":
        captions = None if prompts is None else {prompt.id: prompt.text for prompt in prompts}
        return MovingShapesSuite(subject=subject, world=world, settings=scenes, videos=args.videos, prompts=captions)
    captioned = ()
    if prompts is None and subject.sampler is not None:
        prompts, captioned = world_prompts(world, args.videos), world.metrics
        captioned += world.scene_metrics if subject.continues else ()
    elif prompts is None and args.world_given:  # files whose names are numbers of scenes
        texts, captioned = scene_prompts(world, subject.files), world.metrics
        prompts = [BenchmarkPrompt(id=id, text=text) for id, text in texts.items()]
    if args.suite == "drift":
        frames = args.num_frames
        return DriftSuite(subject=subject, prompts=prompts or [], num_frames=frames, captioned=captioned, **size)
    results = ExternalResults() if args.results is None else read_results(args.results)
    return HeliosBenchSuite(
        subject=subject,
        prompts=prompts or [],
        rules=args.rules,
        num_frames=args.num_frames,
        results=results,
        **size,
    )


def _world(args: argparse.Namespace) -> "tuple[World, WorldSettings]":
    from helios_jax.evaluation.worlds import WorldSettings, world_of

    settings = WorldSettings(
        seed=args.world,
        frames=args.num_frames or args.chunk_frames,
        height=args.height,
        width=args.width,
        num_shapes=args.num_shapes or None,
        style=args.style,
    )
    return world_of(settings), settings


class _Progress:
    """Prints how many videos are measured, at the beginning and the end of each part and every few seconds."""

    def __init__(self, check_interrupted: Callable[[], None], seconds: float = 10) -> None:
        self._check, self._seconds = check_interrupted, seconds
        self._printed: tuple[str, int] = ("", -1)
        self._next = 0.0

    def __call__(self, part: str, done: int, total: int) -> None:
        self._check()
        if (part, done) == self._printed:
            return
        ends = part != self._printed[0] or done == total
        if ends or time.monotonic() >= self._next:
            print(f"{part}: {done} of {total} videos are measured", flush=True)
            self._printed, self._next = (part, done), time.monotonic() + self._seconds


if __name__ == "__main__":
    run()
