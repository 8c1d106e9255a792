"""Records: how a video was made, as JSON next to it, and comparison with a new request for the same video.

A record holds every setting, with defaults filled in, so that the video can be made again, and facts about the run.
Input files are recorded with a digest, so that a rerun detects changed files.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_jax.arguments import shortened
from helios_jax.checkpoints.lora_argument import find_lora_file
from helios_jax.sample.jobs import Job
from helios_jax.sampling.settings import SampleSettings
from helios_jax.version import __version__

if TYPE_CHECKING:
    from helios_jax.checkpoints.settings import PipelineSettings
    from helios_jax.sampling.request import Request

FACTS = ("helios_jax", "seconds", "device", "versions", "sha256", "unfinished", "num_frames")
"""Keys that are not compared: they do not affect the content of the video, or repeat other keys."""

_PIECES, _PIECE = 64, 16384
"""How many pieces of a file ``content_digest`` reads, and their bytes."""

ESSENTIAL = ("prompt", "seed", "steps", "height", "width", "frames")
"""Keys without which a record cannot be compared."""


def record_of(
    args: argparse.Namespace,
    job: Job,
    request: "Request",
    settings: SampleSettings,
    model: "PipelineSettings",
    *,
    frames: int | None,
    content: str | None = None,
) -> dict[str, Any]:
    """The record of a video that is to be made, with the frames of its file.

    ``content`` is the ``content_digest`` of the model.
    """
    snapshot = _is_snapshot(model.folder)
    given = {"image": job.image, "video": job.video}
    if args.resume is not None:
        given["resume"] = args.resume
    record = {
        "helios_jax": __version__,
        "prompt": job.prompt if isinstance(job.prompt, str | None) else dataclasses.asdict(job.prompt),
        "negative_prompt": _negative_prompt(job) if request.guided and args.resume is None else None,
        "model": args.model if snapshot else os.path.realpath(model.folder),
        "revision": model.folder.name if snapshot else args.revision,
        **({} if content is None else {"model_content": content}),
        "lora": [[os.path.abspath(file), scale] for file, scale in args.lora],
        **({"merge_lora": args.merge_lora} if args.lora else {}),
        **{name: None if path is None else os.path.abspath(path) for name, path in given.items()},
        **vars(settings),
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "amplify_first_chunk": request.amplify_first_chunk,
        "frames": frames,
        "fps": args.fps if isinstance(args.fps, int | float) else str(args.fps),
        **({"enlarge": args.enlarge} if args.enlarge else {}),
        "dtype": args.dtype,
        "vae_dtype": args.vae_dtype,
        "sha256": {
            **{name: digest(path) for name, path in given.items() if path is not None},
            "lora": [digest(find_lora_file(file)) for file, _ in args.lora],
        },
    }
    return json.loads(json.dumps(record))  # tuples become lists, as in the file


def _negative_prompt(job: Job) -> str:
    from helios_jax.sampling.prompts import NEGATIVE_PROMPT

    return NEGATIVE_PROMPT if job.negative_prompt is None else job.negative_prompt


@functools.cache
def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(folder: Path) -> str | None:
    """A digest of a checkpoint on disk, which tells whether it was edited or replaced; ``None`` for one of the hub.

    Files beyond 1 MB count by their size and 64 pieces, so that 40 GB take no time: weights that were trained further
    differ everywhere.
    """
    if _is_snapshot(folder):
        return None
    digest = hashlib.sha256()
    files = [folder / "model_index.json"]
    for part in ("scheduler", "text_encoder", "tokenizer", "transformer", "vae"):
        files += sorted(path for path in (folder / part).rglob("*") if path.is_file())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\n".encode())
        with open(path, "rb") as file:
            for number in range(_PIECES):
                file.seek(number * max(size // _PIECES, _PIECE))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()[:16]


def _is_snapshot(folder: Path) -> bool:
    """Whether a folder belongs to the cache of the hub: models--owner--name/snapshots/commit."""
    return folder.parent.name == "snapshots"


def facts_of_run(seconds: float) -> dict[str, Any]:
    """Facts about the run for a finished record."""
    import flax
    import jax
    import jaxlib
    import numpy as np

    versions = {
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (jax, jaxlib, flax, np)},
    }
    return {"seconds": round(seconds, 3), "device": jax.devices()[0].device_kind, "versions": versions}


def finished_record(job: Job) -> dict[str, Any] | None:
    """The record of an earlier run that finished the video; ``None`` if there is no such video.

    Raises:
        ValueError: The record cannot be compared.
    """
    if not job.outputs.video.is_file() or not job.outputs.video.stat().st_size:
        return None
    for path in (job.outputs.record, job.outputs.earlier_record):
        record = _read(path)
        if record is None:
            continue
        if missing := [key for key in ESSENTIAL if key not in record]:
            raise ValueError(
                f"{path} lacks {missing}, so the settings of {job.outputs.video.name} are unknown; pass --overwrite to "
                "make it again, or choose another --out"
            )
        return record
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """A record of this program; ``None`` if the file is missing or is not one."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("helios_jax"), str) else None


def differences(then: dict[str, Any], now: dict[str, Any], *, seed_drawn: bool) -> list[str]:
    """Differences between the record of a finished video and the record of a new request for it.

    Only keys of both records are compared, because versions before 0.2 recorded less.

    Args:
        then: The record of the finished video.
        now: The record of the new request.
        seed_drawn: The seed of the new request was drawn, so any seed is accepted.
    """
    before, after = _comparable(then), _comparable(now)
    keys = [key for key in after if key in before and key not in FACTS and not (key == "seed" and seed_drawn)]
    return [
        f"{key} was {shortened(json.dumps(then[key]), 48)}, now {shortened(json.dumps(now[key]), 48)}"
        + (" with other content" if then[key] == now[key] else "")
        for key in keys
        if before[key] != after[key]
    ]


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    """The record in a normal form, since some settings can be written in several ways."""
    found = dict(record)
    prompt = found["prompt"]
    if isinstance(prompt, dict) and len(prompt.get("prompts", ())) == 1:  # earlier versions wrote a schedule of one
        found["prompt"] = prompt["prompts"][0]
    model = found.get("model")
    if isinstance(model, str) and os.path.isdir(os.path.expanduser(model)):
        found["model"] = os.path.realpath(os.path.expanduser(model))
        found.pop("revision", None)
    digests = record.get("sha256")
    for name in ("image", "video", "resume", "lora"):
        if not found.get(name):
            continue
        if not isinstance(digests, dict):  # an earlier version, which knew only the path
            if name != "lora":
                found[name] = os.path.abspath(os.path.expanduser(str(found[name])))
        elif name != "lora":
            found[name] = digests.get(name)
        else:
            found[name] = [[file, *rest[1:]] for file, rest in zip(digests.get(name, []), found[name], strict=False)]
    return found
