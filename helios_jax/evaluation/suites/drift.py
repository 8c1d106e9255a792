"""``--suite=drift``: what changes along long videos, chunk by chunk and from the first frame on."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from helios_jax.evaluation.appearance import Appearance
from helios_jax.evaluation.metrics import Metric, VideoInfo
from helios_jax.evaluation.prompts import BenchmarkPrompt
from helios_jax.evaluation.records import Record
from helios_jax.evaluation.runner import Part, mean_values
from helios_jax.evaluation.similarity import Similarity
from helios_jax.evaluation.suites.base import Scores, Subject, Table, check_size, number


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DriftSuite:
    """A ``Suite``.

    Attributes:
        subject: Whose videos.
        prompts: Their prompts.
        num_frames: Their length.
        height: Pixel rows.
        width: Pixel columns.
        captioned: Metrics of the world that the prompts are captions of; empty if they are not.
    """

    subject: Subject
    prompts: Sequence[BenchmarkPrompt]
    num_frames: int
    height: int
    width: int
    captioned: tuple[Metric, ...] = ()

    @functools.cached_property
    def parts(self) -> list[Part]:
        """See ``Suite``."""
        metrics = (Appearance(), Similarity(), *self.captioned, *self.subject.all_metrics)
        if self.subject.sampler is None:
            batches = self.subject.file_batches({prompt.id: prompt.text for prompt in self.prompts})
        else:
            batches = self.subject.batches([self._video(prompt) for prompt in self.prompts])
        part = Part(name=self.subject.name, batches=batches, metrics=metrics)
        for video in part.videos:
            Similarity().start(video)  # says what it needs before anything is sampled
        if self.captioned:
            check_size(part.videos)
        return [part]

    def _video(self, prompt: BenchmarkPrompt) -> VideoInfo:
        return VideoInfo(
            name=prompt.id,
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            chunk_frames=self.subject.chunk_frames,
            prompt=prompt.text,
        )

    def scores(self, records: Mapping[str, Sequence[Record]]) -> Scores:
        """See ``Suite``: means over videos of every value, and the values of every video."""
        own = records[self.subject.name]
        rows = [{"name": record["name"], "prompt": record["prompt"], **record["values"]} for record in own]
        return {self.subject.name: {"videos": len(own), **mean_values(own)}, "videos": rows}

    def tables(self, scores: Scores) -> list[Table]:
        """See ``Suite``."""
        rows = [(name, number(value)) for name, value in scores[self.subject.name].items()]
        return [("Means over videos", rows)]
