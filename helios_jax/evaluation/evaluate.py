"""An evaluation from its records' folder to scores and report: what ``helios-evaluate`` and others run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helios_jax.evaluation.records import REPORT, SCORES, open_records
from helios_jax.evaluation.report import report
from helios_jax.evaluation.runner import Options, measure_part
from helios_jax.evaluation.suites.base import Scores, Suite


def evaluate(
    suite: Suite,
    out: Path,
    settings: Mapping[str, Any],
    *,
    title: str,
    options: Options | None = None,
    overwrite: bool = False,
) -> Scores:
    """Measures the videos that have no record in ``out`` and writes scores and report.

    Args:
        suite: What is evaluated.
        out: The folder, see ``evaluation.records``.
        settings: All that decides what the records hold; other settings in the folder are refused.
        title: The report's heading.
        options: How videos are measured.
        overwrite: Remove an evaluation with other settings from the folder.

    Returns:
        The content of scores.json.

    Raises:
        ValueError: The videos cannot be measured, or the folder has other settings.
        OSError: Something cannot be read or written.
    """
    parts = suite.parts  # checks the videos before the folder is touched
    with open_records(out, settings, overwrite=overwrite) as records:
        found = {part.name: measure_part(part, records, options or Options()) for part in parts}
        scores = {"settings": dict(settings), **suite.scores(found)}
        records.publish(SCORES, scores_text(scores))
        records.publish(REPORT, report(title, settings, suite.tables(scores), parts, found, records))
    return scores


def scores_text(scores: Scores) -> str:
    """The text of scores.json: indented, with one line for each video."""
    lines = ",\n  ".join(json.dumps(row) for row in scores["videos"])
    text = json.dumps({name: value for name, value in scores.items() if name != "videos"}, indent=1)
    return f'{text[:-2]},\n "videos": [\n  {lines}\n ]\n}}\n'
