"""What can be known to fail before weights are downloaded or loaded: from the settings of the checkpoint alone."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from helios_jax.checkpoints.pipelines import PipelineSettings, read_settings
from helios_jax.sample.jobs import Job
from helios_jax.sample.records import differences, finished_record, record_of
from helios_jax.sampling.prompts import PromptSchedule
from helios_jax.sampling.request import RequestDefaults, SampleInputs
from helios_jax.sampling.settings import SampleSettings

_LARGE = 4e9
"""Parameters of a transformer from which on a CPU is hopeless: that of Helios has 14e9."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckedJob:
    """A video that can be made.

    Attributes:
        job: The video.
        settings: How to sample, with its length.
        record: Its record, as far as it is known before.
    """

    job: Job
    settings: SampleSettings
    record: dict[str, Any]

    def finished(self) -> bool:
        """Whether an earlier run, or another process meanwhile, has made this very video.

        Raises:
            ValueError: It has made another one.
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


def check_jobs(args: argparse.Namespace, jobs: list[Job]) -> list[CheckedJob]:
    """Checks the videos against the checkpoint, of which only the settings are read.

    Raises:
        ValueError: One cannot be made, or is finished with other settings.
        OSError: The checkpoint or an input does not exist or cannot be read.
    """
    model = read_settings(args.model, revision=args.revision, cache_dir=args.cache_dir)
    if model.text_encoder is None:
        raise ValueError(
            f"{args.model} has no text_encoder/, which {args_program()} needs; in Python, pass prompt_embeds"
        )
    defaults = RequestDefaults(
        pipeline=model.config, scheduler=model.scheduler, transformer=model.transformer, vae=model.vae
    )
    for file, *_ in args.lora:
        check_readable(Path(file), "--lora")
    if not jobs:  # only to compile
        defaults.resolve(SampleInputs(prompt=""), _with_length(args_settings(args), 1), has_text_encoder=True)
    seen: set[Path] = set()
    return [_checked(args, job, model, defaults, seen) for job in jobs]
