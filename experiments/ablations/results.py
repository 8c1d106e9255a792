"""The files that ``run.py`` writes, read and checked, and what is compared of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helios_jax.experiments.ablations.bootstrap import Interval, mean_interval
from helios_jax.experiments.ablations.rows import ROWS
from helios_jax.safe_files import read_object
from helios_jax.typing import Float

COMMITTED = Path(__file__).parents[1] / "results" / "ablations"
"""The files of rows that have been run."""

_SAME = ("size", "scenes", "chunks")
"""What rows must agree on, to be compared in pairs, next to the settings of ``run.py``."""

_COSTS = ("gflop_per_chunk", "ms_per_chunk", "training_minutes", "sampling_minutes")
_FACTS = (*_SAME, "settings", "against", "command", "commit", "card", "seed", *_COSTS)
"""What the file of a row has to say."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """What is compared of the videos.

    Attributes:
        name: The name in the files, see ``measure.CURVES``.
        title: For tables and plots.
        best: The best value, in words.
        late: Of the last quarter of the chunks; off: of all that were sampled.
    """

    name: str
    title: str
    best: str
    late: bool = True


MEASURES = (
    Measure(name="caption", title="caption score", best="1"),
    Measure(name="path_error", title="path error", best="0"),
    Measure(name="speed_ratio", title="speed ratio", best="1"),
    Measure(name="background_distance", title="colour distance of the background", best="0"),
    Measure(name="shape_distance", title="colour distance of shapes", best="0"),
    Measure(name="high_band_ratio", title="ratio of high bands", best="1"),
    Measure(name="same_after_return", title="same after return", best="1", late=False),
    Measure(name="border_jump", title="jump at borders of chunks", best="0"),
)
"""Measures in the order of the tables."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RowResult:
    """The file of one row.

    Attributes:
        facts: Everything but the values.
        values: A matrix [scenes, chunks] for each measure; NaN where a value is not known.
    """

    facts: Mapping[str, Any]
    values: Mapping[str, Float[np.ndarray, "scenes chunks"]]

    @property
    def name(self) -> str:
        """The row."""
        return self.facts["row"]

    def of_scenes(self, measure: Measure) -> Float[np.ndarray, " scenes"]:
        """A value for each scene: the mean over its chunks, NaN if none has one.

        Chunk 0 is that of the scene itself and does not count.
        """
        matrix = self.values[measure.name]
        chunks = matrix.shape[1]
        first = chunks - max(1, chunks // 4) if measure.late else 1
        kept = matrix[:, first:]
        known = np.isfinite(kept)
        count = known.sum(1)
        return np.where(count > 0, np.where(known, kept, 0.0).sum(1) / np.maximum(count, 1), np.nan)


def read_row(file: Path) -> RowResult:
    """Reads the file of a row.

    Raises:
        ValueError: It is damaged, or of a row that does not exist.
    """
    content = read_object(file, "remove it and run the row again")
    if content.get("row") not in ROWS:
        raise ValueError(f"{file}: there is no row {content.get('row')!r}; remove the file, or give another folder")
    if missing := [name for name in _FACTS if name not in content]:
        raise ValueError(f"{file} does not say {missing[0]}; run the row again")
    values = {}
    for measure in MEASURES:
        matrix = content.get("values", {}).get(measure.name)
        if matrix is None:
            raise ValueError(f"{file} has no values of {measure.name}; run the row again")
        values[measure.name] = np.array([[np.nan if one is None else one for one in video] for video in matrix], float)
        expected = (len(content["scenes"]), content["chunks"])
        if values[measure.name].shape != expected:
            raise ValueError(f"{file}: {measure.name} has {values[measure.name].shape} values, not {expected}")
    return RowResult(facts={name: value for name, value in content.items() if name != "values"}, values=values)


def read_rows(folders: Sequence[Path]) -> dict[str, RowResult]:
    """The rows in folders, in the order of ``ROWS``; empty without files.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: A file is damaged, two are of one row, or they cannot be compared.
    """
    found: dict[str, RowResult] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; give the results of ablations.run, <out>/results")
        for file in sorted(folder.glob("*.json")):
            row = read_row(file)
            if row.name in found:
                raise ValueError(f"{file}: the row {row.name} is there twice; give one file of each row")
            found[row.name] = row
    for row in found.values():
        first = next(iter(found.values()))
        one, other = (each.facts["settings"] | {name: each.facts[name] for name in _SAME} for each in (first, row))
        if differing := [name for name in one | other if one.get(name) != other.get(name)]:
            name = differing[0]
            raise ValueError(
                f"rows {first.name} and {row.name} have different {name} ({one.get(name)!r:.60} and "
                f"{other.get(name)!r:.60}), so they are no pair; run one of them again"
            )
    return {name: found[name] for name in ROWS if name in found}


def difference(row: RowResult, reference: RowResult, measure: Measure) -> Interval:
    """The mean over scenes of the row's value less that of the reference, in the scenes that have both."""
    return mean_interval(row.of_scenes(measure) - reference.of_scenes(measure))


def own(row: RowResult, measure: Measure) -> Interval:
    """The mean over scenes of the row's value."""
    return mean_interval(row.of_scenes(measure))
