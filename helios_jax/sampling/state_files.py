"""Files of stream states: one file, without pickle, that is checked as a whole.

    helios_jax stream state 1 <SHA-256 of the rest>
    <JSON object: everything but the arrays>
    <the arrays, as safetensors>

Arrays that NumPy does not have, such as bfloat16, are stored as integers of the same bits, and the JSON object names
their dtype. The file is written under another name, synchronised and renamed, so that a crash leaves the old state or
the new one.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from helios_jax.safe_files import replace_bytes
from helios_jax.sampling.identity import ModelIdentity
from helios_jax.sampling.settings import SampleSettings
from helios_jax.sampling.stream_state import StreamState
from helios_jax.sampling.timeline import TimelineState
from helios_jax.typing import Path
from helios_jax.user_input import existing_file, finite_number, user_path, whole_number, yes_or_no
from helios_jax.version import __version__

_START = b"helios_jax stream state "
_VERSION = b"1"


def is_state_file(path: Path) -> bool:
    """Whether ``path`` begins as a state does; a few bytes are read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(len(_START)) == _START
    return False


def check_state_path(path: Path) -> pathlib.Path:
    """The path of a state to be written: it is free, or that of another state.

    Raises:
        FileExistsError: There is something else.
    """
    path = user_path(path, "the state")
    if os.path.lexists(path) and not is_state_file(path):
        raise FileExistsError(f"{path} exists and is not a stream state, so it is not replaced; choose another path")
    return path


def save_state(state: StreamState, path: Path) -> None:
    """Writes a state; see ``StreamState.save``."""
    from safetensors.numpy import save

    path = check_state_path(path)
    timeline = state.timeline
    embeds = timeline.arrays
    number = {id(array): i for i, array in enumerate(embeds)}
    arrays = {"frames": state.frames, "anchor": state.anchor}
    arrays |= {f"embeds{i}": array for i, array in enumerate(embeds)}
    if state.negative is not None:
        arrays["negative"] = state.negative
    header = {
        "helios_jax": __version__,
        "index": state.index,
        "timeline": {
            **{name: number[id(getattr(timeline, name))] for name in ("old", "new", "shown")},
            "weights": timeline.weights,
            "changes": [[at, number[id(new)], weights] for at, (new, weights) in sorted(timeline.changes.items())],
        },
        "settings": vars(state.settings),
        **{name: getattr(state, name) for name in ("batch", "conditioned", "seeded")},
        "model": dataclasses.asdict(state.model),
        "dtypes": {name: np.asarray(array).dtype.name for name, array in arrays.items()},
    }
    # JSON has as many digits of a float as it needs, so that weights come back as they were.
    text = json.dumps(header).encode()
    content = b"%s\n%s" % (text, save({name: _plain(np.asarray(array)) for name, array in arrays.items()}))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, b"%s%s %s\n%s" % (_START, _VERSION, hashlib.sha256(content).hexdigest().encode(), content))


def load_state(path: Path) -> StreamState:
    """Reads a state; see ``StreamState.load``."""
    from safetensors.numpy import load

    path = existing_file(path, "state")
    with open(path, "rb") as file:
        start = file.read(len(_START))
        rest = file.read() if start == _START else b""
    if start != _START:
        raise ValueError(f"{path} is not a stream state that helios_jax wrote")
    line, _, content = rest.partition(b"\n")
    version, _, digest = line.partition(b" ")
    if version != _VERSION and version.isdigit():
        raise ValueError(f"{path} is a stream state of version {version.decode()}; this helios_jax reads version 1")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged or incomplete: its content does not match its digest; copy it again")
    text, _, tensors = content.partition(b"\n")
    try:
        return _state(json.loads(text), load(tensors))
    except Exception as error:  # whatever a file that was edited by hand leads to
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} does not describe a stream ({reason:.200})") from error


def _state(header: dict[str, Any], stored: dict[str, np.ndarray]) -> StreamState:
    arrays = {name: stored[name].view(np.dtype(dtype)) for name, dtype in header["dtypes"].items()}
    embeds = [arrays[f"embeds{i}"] for i in range(len(arrays) - 2 - ("negative" in arrays))]
    times, model = header["timeline"], header["model"]
    index = whole_number(header["index"], "index", at_least=0)
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in header["settings"].items()}
    timeline = TimelineState(
        chunk=index,
        **{name: embeds[times[name]] for name in ("old", "new", "shown")},
        weights=_weights(times["weights"]),
        changes={
            whole_number(at, "the chunk of a change", at_least=index): (embeds[new], _weights(weights))
            for at, new, weights in times["changes"]
        },
    )
    return StreamState(
        index=index,
        frames=arrays["frames"],
        anchor=arrays["anchor"],
        timeline=timeline,
        negative=arrays.get("negative"),
        settings=SampleSettings(**settings),
        batch=whole_number(header["batch"], "batch", at_least=1),
        conditioned=yes_or_no(header["conditioned"], "conditioned"),
        seeded=yes_or_no(header["seeded"], "seeded"),
        model=ModelIdentity(**{**model, "dtypes": tuple(model["dtypes"])}),
    )


def _weights(weights: list[float]) -> tuple[float, ...]:
    return tuple(finite_number(weight, "a weight", at_least=0.0, at_most=1.0) for weight in weights)


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in a dtype of NumPy: safetensors returns no others."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array
