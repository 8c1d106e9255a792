"""``--suite=heliosbench``: the benchmark of the paper, as far as it needs no networks of others.

Motion amplitude, its drift between both ends, and the speed of sampling are measured. What other networks measure comes
from a metric of the user's (``--metric``) or from a file (``--results``); the ratings and the total follow when all of
it is there. Speed counts everything from the prompt to frames in host memory.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from helios_jax.evaluation.appearance import Appearance
from helios_jax.evaluation.end_drift import EndDrift
from helios_jax.evaluation.external import ExternalResults
from helios_jax.evaluation.heliosbench import DURATIONS, RULES, throughput_rating
from helios_jax.evaluation.metrics import VideoInfo, known
from helios_jax.evaluation.motion_amplitude import MotionAmplitude
from helios_jax.evaluation.prompts import BenchmarkPrompt
from helios_jax.evaluation.records import Record
from helios_jax.evaluation.runner import Part, mean_values
from helios_jax.evaluation.suites.base import Scores, Subject, Table, number


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeliosBenchSuite:
    """A ``Suite``.

    Attributes:
        subject: Whose videos.
        prompts: The prompts; those without a duration have the benchmark's four in turn.
        height: Pixel rows.
        width: Pixel columns.
        rules: "long" or "short", see ``evaluation.heliosbench``.
        num_frames: Length of all videos in place of their durations; ``None``: the durations.
        results: What was measured elsewhere.
    """

    subject: Subject
    prompts: Sequence[BenchmarkPrompt]
    height: int
    width: int
    rules: str = "long"
    num_frames: int | None = None
    results: ExternalResults = dataclasses.field(default_factory=ExternalResults)

    @functools.cached_property
    def parts(self) -> list[Part]:
        """See ``Suite``."""
        amplitude, most = MotionAmplitude(), RULES[self.rules].frames
        metrics = (
            amplitude,
            # Flow needs two frames.
            EndDrift(metric=amplitude, at_least=2),
            Appearance(),
            *self.subject.all_metrics,
        )
        if self.subject.sampler is None:
            batches = self.subject.file_batches({prompt.id: prompt.text for prompt in self.prompts}, most)
        else:
            batches = self.subject.batches([self._video(n, prompt) for n, prompt in enumerate(self.prompts)])
        part = Part(name=self.subject.name, batches=batches, metrics=metrics)
        self.results.check([video.name for video in part.videos])
        return [part]

    def _video(self, place: int, prompt: BenchmarkPrompt) -> VideoInfo:
        target = self.num_frames or prompt.duration or DURATIONS[place % len(DURATIONS)]
        frames = published_length(target, self.subject.chunk_frames)
        most = RULES[self.rules].frames
        return VideoInfo(
            name=f"{prompt.id}_{target}_ori{frames}",
            num_frames=frames if most is None else min(frames, most),
            height=self.height,
            width=self.width,
            chunk_frames=self.subject.chunk_frames,
            prompt=prompt.text,
        )

    def scores(self, records: Mapping[str, Sequence[Record]]) -> Scores:
        """See ``Suite``: means, ratings, their total, and what is missing for it."""
        own = [self.results.added_to(record) for record in records[self.subject.name]]
        rules, means = RULES[self.rules], mean_values(own)
        ratings = rules.ratings(means)
        found: Scores = {
            self.subject.name: {"videos": len(own), **means},
            "rules": self.rules,
            "ratings": ratings,
            "total": rules.total(ratings),
            "missing": [name for name in rules.weights if name not in ratings],
        }
        if self.subject.sampler is not None:
            speed = frames_per_second(own)
            at_size = (self.height, self.width) == (384, 640) and not math.isnan(speed)
            found["throughput"] = {
                "frames_per_second": known(speed),
                "rating": throughput_rating(speed) if at_size else None,
            }
        found["videos"] = [{"name": record["name"], "prompt": record["prompt"], **record["values"]} for record in own]
        return found

    def tables(self, scores: Scores) -> list[Table]:
        """See ``Suite``."""
        means, ratings = scores[self.subject.name], scores["ratings"]
        weights = RULES[self.rules].weights
        rows = [
            (f"{name} (weight {weights[name]})", f"{number(means[name])}, rating {ratings[name]}")
            if name in ratings
            else (f"{name} (weight {weights[name]})", "not measured: --metric or --results")
            for name in weights
        ]
        total = scores["total"]
        rows.append(("total", "needs all of them" if total is None else number(total)))
        tables: list[Table] = [(f"HeliosBench, {self.rules} videos", rows)]
        if speed := scores.get("throughput"):
            rating = "only at 384x640" if speed["rating"] is None else str(speed["rating"])
            tables.append(("Speed", [("frames/s", number(speed["frames_per_second"])), ("rating", rating)]))
        others = [(name, number(value)) for name, value in means.items() if name not in ratings]
        return [*tables, ("Other means over videos", others)]


def published_length(target: int, chunk_frames: int) -> int:
    """Frames of a video that asks for ``target``: whole chunks, cut to 4k + 1 frames."""
    frames = -(-target // chunk_frames) * chunk_frames
    return frames - (frames - 1) % 4


def frames_per_second(records: Sequence[Record]) -> float:
    """The speed of sampling, without the first video of each run; NaN if it is not known.

    If there are only first ones, as when each run was interrupted during its second, they count.
    """
    timed = [record for record in records if record.get("seconds")]
    later = [record for record in timed if not record["cold"]] or timed
    seconds = sum(record["seconds"] for record in later)
    return sum(_sampled_frames(record) for record in later) / seconds if seconds else float("nan")


def _sampled_frames(record: Record) -> int:
    return -(-record["num_frames"] // record["chunk_frames"]) * record["chunk_frames"]
