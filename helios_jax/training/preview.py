"""Checks a run without starting it: settings, weights, data, parameters and memory.

Nothing is written, nothing is downloaded, and no accelerator is touched.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from helios_jax.checkpoints.components import component_folder, find_component, read_json
from helios_jax.checkpoints.sources import folder_of
from helios_jax.data.helios_latents.reader import open_latents
from helios_jax.data.helios_ode.reader import open_ode
from helios_jax.models.tokenization import Tokenizer
from helios_jax.training.datasets import Latents, Trajectories
from helios_jax.training.distiller import Distill
from helios_jax.training.experiment import MAY_CHANGE, Experiment, NeedsFiles
from helios_jax.training.networks import Networks
from helios_jax.training.overrides import as_json
from helios_jax.training.params import flatten, values_by_pattern
from helios_jax.training.products import Pipeline
from helios_jax.training.run_folder import check_settings
from helios_jax.training.setting_list import values_of
from helios_jax.training.sharding import MeshShape
from helios_jax.training.starts import FromCheckpoint, Random
from helios_jax.user_input import user_path

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
    """The result of the checks.

    Attributes:
        lines: The report.
        problems: Reasons why the run cannot start; empty if none were found.
    """

    lines: tuple[str, ...]
    problems: tuple[str, ...]


def preview(experiment: Experiment, original: Experiment, workdir: pathlib.Path) -> Preview:
    """Checks a run.

    Args:
        experiment: The settings to run.
        original: The settings in the experiment file, before flags changed them.
        workdir: Folder of the run.
    """
    lines, problems = [f"{name} = {value!r}" for name, value in values_of(experiment)], []
    for check in (
        _flags(experiment, original),
        _earlier(experiment, workdir),
        _optimizer(experiment),
        _weights(experiment),
        _procedure(experiment),
        _validation(experiment),
        _data(experiment),
        _parameters(experiment),
    ):
        try:
            lines += check
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return Preview(lines=tuple(lines), problems=tuple(problems))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines for the settings that differ."""
    lines = []
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in new:
            lines.append(f"  {name}: {old[name]!r} before, not there now")
        elif name not in old:
            lines.append(f"  {name}: {new[name]!r}, not there before")
        elif old[name] != new[name]:
            lines.append(f"  {name}: {old[name]!r} -> {new[name]!r}")
    return lines


def _flags(experiment: Experiment, original: Experiment) -> Iterator[str]:
    changed = differences(dict(values_of(original)), dict(values_of(experiment)))
    yield "\nchanged by flags:" if changed else "\nno setting is changed by a flag"
    yield from changed


def _earlier(experiment: Experiment, workdir: pathlib.Path) -> Iterator[str]:
    file = workdir / "config.json"
    if not file.exists():
        yield f"{workdir}: a new run"
        return
    saved = (workdir / "checkpoints").iterdir() if (workdir / "checkpoints").is_dir() else ()
    steps = [int(path.name) for path in saved if path.name.isdigit()]
    yield f"{workdir}: resumes from step {max(steps)}" if steps else f"{workdir}: starts again, without a checkpoint"
    settings = as_json(experiment)
    changed = differences(_flat(read_json(file)), _flat(json.loads(json.dumps(settings))))
    if changed:
        yield "changed since the run began:"
        yield from changed
    check_settings(workdir, settings, may_change=MAY_CHANGE)


def _flat(settings: Any, name: str = "config") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {name: settings}
    found = {}
    for key, value in settings.items():
        found |= _flat(value, name if key == "class" else f"{name}.{key}")
    return found


def _optimizer(experiment: Experiment) -> Iterator[str]:
    experiment.optimizer.learning_rates(experiment.steps)
    yield from ()


def _weights(experiment: Experiment) -> Iterator[str]:
    for part, owner, field in (
        ("start", experiment.start, "folder"),
        ("method.score", getattr(experiment.method, "score", None), "folder"),
        ("product", experiment.product, "parts"),
    ):
        name = getattr(owner, field, None)
        if isinstance(name, str):
            found = on_disk(name)
            yield f"config.{part}.{field}: {found}" if found else f"config.{part}.{field}: {name} will be downloaded"
    product = experiment.product
    # Only in a folder of the user: what lacks in the cache of the hub will be downloaded.
    if isinstance(product, Pipeline) and user_path(product.parts, "parts").is_dir():
        product.check(experiment.start)


def _procedure(experiment: Experiment) -> Iterator[str]:
    if isinstance(experiment.method, Distill):
        experiment.method.check(experiment)
    yield from ()


def _validation(experiment: Experiment) -> Iterator[str]:
    if isinstance(experiment.validation, NeedsFiles):
        experiment.validation.check(experiment.start)
    yield from ()


def on_disk(name: str) -> pathlib.Path | None:
    """The folder of a checkpoint, or ``None`` for a hub id that is not in the cache.

    Raises:
        FileNotFoundError: Neither a folder nor a hub id.
    """
    if folder := folder_of(name):
        return folder
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "model_index.json")
    return pathlib.Path(file).parent if isinstance(file, str) else None


def _data(experiment: Experiment) -> Iterator[str]:
    data = experiment.data
    if not isinstance(data, Latents | Trajectories):
        yield f"config.data: {type(data).__name__}, which is not checked"
        return
    kind, opens = ("clips", open_latents) if isinstance(data, Latents) else ("trajectories", open_ode)
    for folder in data.folders:
        opened: Mapping[Any, Any] = opens(folder)
        if data.on_error == "raise":
            for records in opened.values():
                next(iter(records), None)  # a file that cannot be read shows at its first record
        sizes = {f"{height}x{width}": len(files) for (height, width), files in opened.items()}
        counts = ", ".join(f"{count} {kind} of {size} latents" for size, count in sizes.items())
        yield f"config.data.folders: {folder} has {counts}"
    if data.tokenizer and (folder := on_disk(data.tokenizer)):
        Tokenizer.from_folder(folder)
        yield f"config.data.tokenizer: {folder}"


def _parameters(experiment: Experiment) -> Iterator[str]:
    networks = abstract_networks(experiment)
    if networks is None:
        yield "parameters: not counted, since the weights are not in a folder of this machine"
        return
    _, params = flatten(networks)
    trained = values_by_pattern(experiment.trainable, params, 0)
    if not any(trained.values()):
        raise ValueError(f"nothing to train: config.trainable={experiment.trainable} selects no parameter")
    count = sum(_size(array) for path, array in params.items() if trained[path])
    frozen = [array for path, array in params.items() if not trained[path]]
    # Trained parameters and their two moments are fp32, and so is a moving average.
    state = 4 * count * (3 + (experiment.ema is not None))
    stored = sum(_size(array) * np.dtype(array.dtype).itemsize for array in frozen)
    yield f"parameters: {count:,} trained and {sum(map(_size, frozen)):,} frozen"
    yield (
        f"memory over all devices: {state / _GIB:.2f} GiB for trained parameters, optimizer and averages, "
        f"{stored / _GIB:.2f} GiB for frozen parameters; gradients and activations come on top"
    )


def abstract_networks(experiment: Experiment) -> Any:
    """The networks of a run with shapes in place of arrays; ``None`` if its weights are not on this machine."""
    start = experiment.start
    if isinstance(start, Random):
        mesh = MeshShape().build()
        return jax.eval_shape(lambda: experiment.initial_networks(mesh))
    if not isinstance(start, FromCheckpoint) or not (folder := on_disk(start.folder)):
        return None
    networks = Networks(**{part: _abstract(folder, part, start.dtype) for part in start.parts})
    if experiment.lora is None:
        return networks
    add = experiment.lora.add
    return jax.eval_shape(lambda networks: add(networks, jax.random.key(0)), networks)


def _abstract(folder: pathlib.Path, part: str, dtype: str) -> Any:
    component = find_component(part)
    config = component.config.from_diffusers(read_json(component_folder(folder, part) / "config.json"))
    return component.abstract(config, dtype)


def _size(array: Any) -> int:
    return int(np.prod(array.shape))
