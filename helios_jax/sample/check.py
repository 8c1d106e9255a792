"""Checks before weights are downloaded or loaded, from the settings of the checkpoint alone."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from helios_jax.checkpoints.lora_adapters import check_adapters
from helios_jax.checkpoints.lora_merge import check_lora
from helios_jax.checkpoints.pipelines import compute_dtype
from helios_jax.checkpoints.settings import PipelineSettings, read_settings
from helios_jax.sample.flags import settings_of
from helios_jax.sample.jobs import Job, in_line
from helios_jax.sample.outputs import check_outputs, remove_earlier, set_aside
from helios_jax.sample.records import content_digest, differences, finished_record, record_of
from helios_jax.sample.resuming import frames_of_file, read_state, resumed_settings
from helios_jax.sampling.prompts import NEGATIVE_PROMPT, PromptSchedule
from helios_jax.sampling.request import Request, RequestDefaults, SampleInputs
from helios_jax.sampling.settings import SampleSettings
from helios_jax.sampling.start import resumed_request
from helios_jax.sampling.stream_state import StreamState


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckedJob:
    """A video that can be made.

    Attributes:
        job: The video.
        settings: How to sample, with the length that its prompts ask for.
        record: Its record, as far as it is known before sampling.
        earlier: The state of the finished record at the time of the check, see ``record_changed``.
        frames: Frames of the file; ``None`` if the video has no end.
        resume: The state that the video is continued from, if it is.
    """

    job: Job
    settings: SampleSettings
    record: dict[str, Any]
    earlier: tuple[int, int] | None
    frames: int | None
    resume: StreamState | None = None

    @property
    def negative_prompt(self) -> str:
        """The negative prompt of the video."""
        return NEGATIVE_PROMPT if self.job.negative_prompt is None else self.job.negative_prompt

    def record_changed(self) -> bool:
        """Whether a process has finished the video since the check."""
        return _state(self.job.outputs.record) != self.earlier

    def make_room(self) -> None:
        """Removes a finished video of an earlier run, or renames an unfinished one; other files are not touched."""
        outputs = self.job.outputs
        check_outputs(outputs)
        if finished_record(self.job) is not None:
            remove_earlier(outputs)
        else:
            for left, now in set_aside(outputs):
                print(f"{left.name} was left by an interrupted run and is now {now.name}", flush=True)

    def finished(self) -> bool:
        """Whether an earlier run, or another process in the meantime, has made this video.

        Raises:
            ValueError: A video with other settings has its name.
        """
        record = finished_record(self.job)
        if record is None:
            return False
        if changed := differences(record, self.record, seed_drawn=self.job.seed_drawn):
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise ValueError(
                f"{self.job.outputs.video} was made with other settings ({self.job.source}): "
                f"{'; '.join(changed[:3])}{more}; pass --overwrite to make it again, or choose another --out"
            )
        return True


def check_jobs(args: argparse.Namespace, jobs: list[Job]) -> tuple[PipelineSettings, list[CheckedJob]]:
    """Checks the videos against the checkpoint; reads only its settings. Replaces "auto" among the dtypes.

    Returns:
        The settings of the checkpoint and the videos, finished or not.

    Raises:
        ValueError: One cannot be made.
        OSError: The checkpoint or an input does not exist or cannot be read.
    """
    model = read_settings(args.model, revision=args.revision, cache_dir=args.cache_dir)
    if model.text_encoder is None:
        raise ValueError(f"{args.model} has no text encoder, so no prompts can be read; download the checkpoint again")
    state = read_state(args)
    # Records of videos name the dtype that was used.
    args.dtype, args.vae_dtype = (str(compute_dtype(getattr(args, name), name)) for name in ("dtype", "vae_dtype"))
    defaults = RequestDefaults.of(model)
    for file, _ in args.lora:
        (check_lora if args.merge_lora else check_adapters)(file, model.transformer)
    if not jobs:  # compile only
        _resolve(defaults, SampleInputs(prompt=""), settings_of(args, seed=0), "--warmup")
    content = content_digest(model.folder) if jobs else None
    seen: set[tuple[Path | None, ...]] = set()
    checked = []
    for job in jobs:
        if state is not None:
            checked.append(_resumed(args, job, state, defaults, model, content=content))
            continue
        settings = _with_length(job, defaults)
        assert job.prompt is not None, "only a resumed video has none"
        inputs = SampleInputs(
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            # Many videos may begin with the same image, which is read once.
            image=None if (job.image, None) in seen else job.image,
            video=None if (None, job.video) in seen else job.video,
        )
        request = _resolve(defaults, inputs, settings, job.source)
        seen |= {(job.image, None), (None, job.video)}
        checked.append(_checked(args, job, request, settings, model, content=content))
    return model, checked


def _checked(
    args: argparse.Namespace,
    job: Job,
    request: Request,
    settings: SampleSettings,
    model: PipelineSettings,
    *,
    content: str | None,
    resume: StreamState | None = None,
) -> CheckedJob:
    chunk_frames = model.vae.pixel_frames(request.history_config.chunk_frames)
    frames = frames_of_file(args, request, chunk_frames=chunk_frames, start=resume.index if resume else 0)
    record = record_of(args, job, request, settings, model, frames=frames, content=content)
    earlier = _state(job.outputs.record)
    return CheckedJob(job=job, settings=settings, record=record, earlier=earlier, frames=frames, resume=resume)


def _resumed(
    args: argparse.Namespace,
    job: Job,
    state: StreamState,
    defaults: RequestDefaults,
    model: PipelineSettings,
    *,
    content: str | None,
) -> CheckedJob:
    """The video that continues another; what does not fit is named with the file of the state."""
    try:
        state.model.require_dtypes((args.dtype, args.vae_dtype))
        settings = resumed_settings(args, state, job.settings.seed)
        request = resumed_request(defaults, state, settings)
    except ValueError as error:
        raise ValueError(f"--resume={args.resume}: {error}") from error
    return _checked(args, job, request, settings, model, content=content, resume=state)


def check_device(args: argparse.Namespace, model: PipelineSettings) -> str:
    """Checks that the weights fit into the memory of the device.

    Returns:
        A description of the device, its memory and the size of the weights.

    Raises:
        ValueError: They do not, or a large model would run on a CPU and the user did not ask for that.
    """
    from helios_jax.checkpoints.footprint import footprint

    found = footprint(model, dtype=args.dtype, vae_dtype=args.vae_dtype, parked=args.park)
    try:
        found.check(allow_cpu=args.allow_cpu)
    except ValueError as error:
        raise ValueError(str(error).replace("allow_cpu=True", "--allow_cpu")) from error
    return str(found)


def _state(path: Path) -> tuple[int, int] | None:
    """A value that changes when the file is replaced; ``None`` if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _with_length(job: Job, defaults: RequestDefaults) -> SampleSettings:
    """The settings of a job; a schedule of prompts determines the length."""
    if job.settings.num_frames is None and isinstance(job.prompt, PromptSchedule):
        frames = job.prompt.num_chunks * defaults.vae.pixel_frames(defaults.pipeline.history.chunk_frames)
        return dataclasses.replace(job.settings, num_frames=frames)
    return job.settings


def _resolve(defaults: RequestDefaults, inputs: SampleInputs, settings: SampleSettings, source: str) -> Request:
    try:
        return defaults.resolve(inputs, settings, has_text_encoder=True)
    except (ValueError, OSError) as error:
        raise in_line(error, source) from error
