"""Few-step students of the small world next to their teacher: the last phase of train_tiny.py.

Every model is sampled from the same captions and seeds, and scored by ``evaluation.moving_shapes``. students.json has,
for each model and number of steps, and for the scenes after a pass through the VAE, which no model can surpass,

    recovered      videos that show colour, kind and direction of everything in their caption
    frechet        distance from the rendered scenes, by features of pixels (``evaluation.frechet``)
    high_band      part of the spatial power at high frequencies, divided by that of the rendered scenes
    motion         how far shapes move per frame, divided by the same of the rendered scenes
    drift          the last of eight chunks less the first, for every statistic of ``evaluation.statistics``

Distilled models take twice their steps in the first chunk. Guidance above 1 doubles the work of a network call.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helios_jax.data.moving_shapes import MovingShapes, caption
from helios_jax.data.workers import ahead_of_time
from helios_jax.evaluation.drift_sheet import drift_sheet
from helios_jax.evaluation.moving_shapes import (
    CHUNK,
    SIZE,
    Evaluation,
    Row,
    in_batches,
    measure_shapes,
    sample,
    sample_and_score,
)
from helios_jax.evaluation.videos import Measured, describe
from helios_jax.safe_files import replace_text

DRIFT_CHUNKS = 8
"""Chunks of the videos whose drift is measured."""

STUDENT_STEPS = ((1, 1, 1), (2, 2, 2))
"""Steps per level with which every student is sampled."""

_DRIFTS = ("brightness", "contrast", "saturation", "high_band")
"""Statistics whose drift is in the table; the file has all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A model and how it is sampled.

    Attributes:
        name: For the table, and for the folder of its scores.
        pipeline: Its checkpoint.
        steps: Network calls per level.
        guidance: Guidance scale; 1: none.
    """

    name: str
    pipeline: Path
    steps: tuple[int, ...]
    guidance: float = 1.0

    @property
    def folder(self) -> str:
        """Name of the folder of its scores."""
        if self.guidance > 1:
            return f"{self.name}-guidance{self.guidance:g}"
        return "-".join([self.name, *map(str, self.steps)])

    def evaluation(self, like: Evaluation) -> Evaluation:
        """``like`` with this contender's sampling."""
        return dataclasses.replace(like, steps=self.steps, guidance=self.guidance)


def compare(contenders: Sequence[Contender], out: Path, like: Evaluation) -> Row:
    """Samples and scores all contenders, and writes students.json; finished scores are not repeated.

    Args:
        contenders: The models.
        out: Folder to write.
        like: How many videos, of which scenes.
    """
    found: dict[str, Any] = {"settings": dataclasses.asdict(like), "models": []}
    for contender in contenders:
        scores = scored(contender, out, like)
        if "vae" not in found:
            found["vae"] = row_of(scores["vae"], scores["statistics"], "vae")
        found["models"].append(
            {
                "model": contender.name,
                "pipeline": str(contender.pipeline),
                "steps": contender.steps,
                "guidance": contender.guidance,
                **row_of(scores["sampled"], scores["statistics"], "sampled"),
                "drift": drift_of(contender, out, like, scores["statistics"]["scenes"])["drift"],
            }
        )
    replace_text(out / "students.json", json.dumps(found, indent=1) + "\n")
    return found


def scored(contender: Contender, out: Path, like: Evaluation) -> Row:
    """The scores of a contender, from its scores.json if that is newer than the model and has the same settings."""
    evaluation, folder = contender.evaluation(like), out / contender.folder
    if (known := _known(folder / "scores.json", contender, evaluation)) is None:
        return sample_and_score(contender.pipeline, folder, evaluation)
    return {name: value for name, value in known.items() if name != "videos"}


def drift_of(contender: Contender, out: Path, like: Evaluation, scenes: Row) -> Row:
    """Describes longer videos of a contender; writes the description and a picture, unless they exist.

    Args:
        contender: The model.
        out: Folder of the folders of scores.
        like: How many videos, of which scenes.
        scenes: Description of the rendered scenes, for the picture.
    """
    from helios_jax.sampling.pipeline import HeliosPipeline

    evaluation, folder = contender.evaluation(like), out / contender.folder
    if (known := _known(folder / "drift.json", contender, evaluation)) is not None:
        return known
    pipe = HeliosPipeline.from_pretrained(contender.pipeline, dtype="auto", vae_dtype="auto")
    world: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_shapes": evaluation.num_shapes or None}
    world["style"] = evaluation.style
    shapes = MovingShapes(seed=evaluation.world, size=evaluation.videos, frames=CHUNK, **world)
    captions = [caption(shapes.scene(number)) for number in range(len(shapes))]
    settings = dataclasses.replace(evaluation.settings, num_frames=DRIFT_CHUNKS * CHUNK)
    videos = in_batches(lambda part: sample(pipe, captions[part], part.start, settings), evaluation)
    workers = evaluation.processes
    one = functools.partial(measure_shapes, style=evaluation.style)
    measured: Iterable[Measured] = ahead_of_time(one, videos, workers, processes=workers > 1)
    measured = list(measured)
    result = {"settings": dataclasses.asdict(evaluation), **describe(measured)}
    reference = {name: value for name in scenes["chunks"] if (value := _mean(scenes["chunks"][name])) is not None}
    sheet = drift_sheet(list(videos), [video.statistics for video in measured], reference, CHUNK)
    sheet.savefig(folder / "drift.png", dpi=80)
    replace_text(folder / "drift.json", json.dumps(result, indent=1) + "\n")
    return result


def row_of(rates: Row, statistics: Row, name: str) -> Row:
    """What students.json says of videos without their drift.

    Args:
        rates: Their rates.
        statistics: Descriptions of all videos.
        name: Which of those is theirs.
    """
    own, scenes = statistics[name], statistics["scenes"]
    bands = [_mean(one["chunks"]["high_band"]) for one in (own, scenes)]
    return {
        "recovered": rates["recovered"],
        "frechet": own.get("frechet"),
        "high_band": _ratio(*bands),
        "motion": _ratio(own["displacement"], scenes["displacement"]),
    }


def table(found: Row) -> str:
    """The content of students.json as text."""
    head = ["model", "steps", "guidance", "recovered", "frechet", "high_band", "motion"]
    head += [f"drift of {name}" for name in _DRIFTS]
    lines = [head]
    rows: list[Row] = [{"model": "scenes through the VAE", **found["vae"]}, *found["models"]]
    for row in rows:
        numbers = [row[name] for name in ("frechet", "high_band", "motion")]
        numbers += [row.get("drift", {}).get(name) for name in _DRIFTS]
        steps, guidance = ",".join(map(str, row.get("steps", ()))), row.get("guidance")
        texts = ["" if value is None else f"{value:.3g}" for value in (guidance, *numbers)]
        lines.append([row["model"], steps, texts[0], row["recovered"], *texts[1:]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _known(file: Path, contender: Contender, evaluation: Evaluation) -> Row | None:
    """The content of a file of results; ``None`` if it is missing, older than the model or has other settings."""
    if not file.exists() or file.stat().st_mtime < (contender.pipeline / "model_index.json").stat().st_mtime:
        return None
    content = json.loads(file.read_text())
    same = json.loads(json.dumps(dataclasses.asdict(evaluation)))
    known = {"style": "plain"} | content["settings"]
    return content if known | {"processes": evaluation.processes} == same else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return float(f"{value / reference:.5g}") if value is not None and reference else None
