"""The settings and weights that a run began with, in two files of its folder.

    <workdir>/config.json    the settings
    <workdir>/start.json     digests of the frozen weights, which checkpoints omit

Both are compared when the run is resumed. They are written atomically, and only if they change.
"""

import copy
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from helios_jax.safe_files import read_object, replace_text
from helios_jax.typing import Path

_RENAMED = {"Checkpoint": "FromCheckpoint"}
"""Classes whose name has changed since runs saved it in their settings."""

ABSENT_MEANS = {
    "method.integer_timesteps": False,
    "data.windows": 1,
    "data.captions": 0,
    "data.style": "plain",
    "start.adapters": "",
    "method.layout.positions": "relative",
    "method.context.layout.positions": "relative",
    "data.layout.positions": "relative",
}
"""Settings that were added later: dotted name -> the value with which earlier runs trained."""

_MISSING = object()

_SHOWN = 8
"""Settings that are named in an error; it has to fit on a screen."""

_WIDTH = 40
"""Characters of a value that are shown there."""


def check_settings(workdir: Path, settings: Mapping[str, Any], *, may_change: Sequence[str]) -> None:
    """Compares the settings of a resumed run with the ones it began with; a new run passes.

    Args:
        workdir: Folder of the run.
        settings: Nested settings, as JSON can hold them.
        may_change: Settings, or groups of them, that a resumed run may change: "steps", "validation".

    Raises:
        ValueError: Settings that decide what is trained differ, up to eight of which are named; or the file is damaged.
    """
    file = _settings_file(workdir)
    if not file.exists():
        return
    remedy = (
        "it holds the settings that the run began with. Restore it from a copy; or remove it, and the next start "
        "writes it again without comparing"
    )
    old, new = _comparable(read_object(file, remedy)), _comparable(json.loads(json.dumps(settings)))
    old = {name: _RENAMED.get(value, value) if name.split(".")[-1] == "class" else value for name, value in old.items()}
    old = _of_today(old, new)
    differing = [
        name
        for name in sorted(old.keys() | new.keys())
        if old.get(name, _MISSING) != new.get(name, _MISSING)
        and not any(name == allowed or name.startswith(allowed + ".") for allowed in may_change)
    ]
    if differing:
        advice = next((_advice(name, old.get(name)) for name in differing if _advice(name, old.get(name))), "")
        problem = f"{workdir} was begun with other settings; undo the changes or use a new folder{advice}"
        texts = [f"{name}: {_text(old, name)} then, {_text(new, name)} now" for name in differing[:_SHOWN]]
        more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        half = (len(texts) + 1) // 2
        lines = [texts[:half], texts[half:]] if len(texts) > _SHOWN // 2 else [texts]
        raise ValueError("\n  ".join([problem, *("; ".join(line) for line in lines)]) + more)


def write_settings(workdir: Path, settings: Mapping[str, Any]) -> None:
    """Saves the settings of a new or resumed run."""
    _write(_settings_file(workdir), settings)


def check_frozen(workdir: Path, digests: Mapping[str, str]) -> None:
    """Compares the frozen weights of a resumed run with the ones it began with; a new run passes.

    Args:
        workdir: Folder of the run.
        digests: Digest of each frozen parameter by path.

    Raises:
        ValueError: They differ, or the file is damaged.
    """
    file = _start_file(workdir)
    if not file.exists():
        return
    remedy = "it holds digests of the weights that the run began with; remove it to resume without comparing them"
    begun = read_object(file, remedy).get("frozen")
    if not isinstance(begun, dict):
        raise ValueError(f"{file} is damaged (no digests in it); {remedy}")
    changed = [path for path in sorted(begun.keys() | digests.keys()) if begun.get(path) != digests.get(path)]
    if changed:
        raise ValueError(
            f"the weights that {workdir} started from have changed since: {len(changed)} of {len(digests)} frozen "
            f"parameters differ, the first is {changed[0]}. Put back the weights that it began with, or use a new "
            "folder"
        )


def write_frozen(workdir: Path, digests: Mapping[str, str]) -> None:
    """Saves the digests of the frozen weights."""
    _write(_start_file(workdir), {"frozen": dict(sorted(digests.items()))})


def _settings_file(workdir: Path) -> pathlib.Path:
    return pathlib.Path(workdir) / "config.json"


def _start_file(workdir: Path) -> pathlib.Path:
    return pathlib.Path(workdir) / "start.json"


def _write(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    if jax.process_index() > 0:
        return
    text = json.dumps(content, indent=2) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        replace_text(file, text)


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, in which every schedule states its own length.

    A cosine whose length is not set ends at the last step, so changing the number of steps changes the schedule.
    """
    settings = copy.deepcopy(settings)

    def complete(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("class") == "AdamW":
                length = node.pop("schedule_steps", 0)
                if node.get("schedule") == "cosine":
                    node["schedule_steps"] = length or settings.get("steps")
            for value in node.values():
                complete(value)

    complete(settings)
    return dict(_leaves(settings))


def _of_today(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Old settings under their current names.

    Context drop and corruption once had a switch each for deciding once per batch; the injection now has one setting.
    """
    renamed = {}
    for name, value in old.items():
        part, _, field = name.rpartition(".")
        decide = f"{part.rpartition('.')[0]}.decide"
        if field == "batch_level" and decide in new:
            renamed[decide] = "batch" if value else "sample"
        else:
            renamed[name] = value
    return {name: value for name, value in ABSENT_MEANS.items() if name in new} | renamed


def _advice(name: str, before: Any) -> str:
    if name.split(".")[-1] != "schedule_steps":
        return ""
    return f". (--config.{name}={before} keeps the end of the cosine as it was)"


def _text(settings: Mapping[str, Any], name: str) -> str:
    value = str(settings.get(name, "not there"))
    return value if len(value) <= _WIDTH else f"{value[: _WIDTH - 3]}..."


def _leaves(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of nested settings; lists are values."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, settings
