"""Results that were measured elsewhere: a JSON file with a number for every video, by metric.

    {"aesthetic": {"1_120_ori129": 0.62, "2_240_ori261.mp4": 0.58}, "drifting_aesthetic": {...}}

Names of videos may have a suffix. Values that HeliosBench aggregates are its raw ones, before ratings.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from helios_jax.evaluation.records import Record
from helios_jax.user_input import existing_file, finite_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExternalResults:
    """Values by metric and name of the video.

    Attributes:
        values: The values.
        source: Where they are from, for messages.
    """

    values: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    source: str = "--results"

    def check(self, videos: Iterable[str]) -> None:
        """Raises ValueError unless every metric has a value for every video."""
        wanted = set(videos)
        for metric, values in self.values.items():
            if missing := sorted(wanted - values.keys()):
                raise ValueError(
                    f"{self.source}: {metric} has no value for {len(missing)} of {len(wanted)} videos, for example "
                    f"{missing[0]}"
                )

    def added_to(self, record: Record) -> Record:
        """A record with the values of its video."""
        more = {metric: values[record["name"]] for metric, values in self.values.items()}
        return {**record, "values": record["values"] | more}


def read_results(file: Path) -> ExternalResults:
    """Reads a file of results.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It has another form.
    """
    file = existing_file(file, "file of results")
    form = 'it needs the form {"metric": {"video": number, ...}, ...}'
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); {form}") from None
    if not isinstance(content, dict) or not all(isinstance(values, dict) for values in content.values()):
        raise ValueError(f"{file}: {form}")
    values = {
        metric: {
            _without_suffix(name): finite_number(value, f"{file}: {metric} of {name}") for name, value in of.items()
        }
        for metric, of in content.items()
    }
    return ExternalResults(values=values, source=str(file))


def _without_suffix(name: str) -> str:
    return name.removesuffix(".mp4")
