"""``--save_state`` and ``--resume``: a video that goes on in another file, after hours or on another machine.

The state is written after each chunk, so that an interrupted video can be continued as well. Files of a video that has
a state hold all frames of their chunks, not the largest 4k + 1, so that they join without a gap.
"""

import argparse
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from helios_jax.sample.outputs import Outputs, check_folder
from helios_jax.sampling.state_paths import check_state_path
from helios_jax.user_input import existing_file

if TYPE_CHECKING:
    from helios_jax.sampling.request import Request
    from helios_jax.sampling.settings import SampleSettings
    from helios_jax.sampling.stream_state import StreamState

_REPLACED = ("image", "video", "negative_prompt", "prompt_file", "warmup")
"""Flags that a resumed video has no use for."""


def check_resume_flags(args: argparse.Namespace) -> None:
    """Checks ``--resume`` against the other flags.

    Raises:
        ValueError: Another flag contradicts it.
        FileNotFoundError: There is no such file.
    """
    if args.resume is None:
        return
    if given := [f"--{name}" for name in _REPLACED if getattr(args, name) not in (None, False)]:
        raise ValueError(f"--resume continues one video with its own past: drop {', '.join(given)}")
    existing_file(args.resume, "state")


def check_save_state(args: argparse.Namespace, inputs: Iterable[Path], outputs: Iterable[Outputs]) -> None:
    """Checks that ``--save_state`` can be written and replaces nothing but a state.

    Raises:
        ValueError: It is an input or another output, or there are several videos.
        FileExistsError: It exists and may not be replaced.
        OSError: Its folder cannot be written to.
    """
    path = args.save_state
    if path is None:
        return
    if args.prompt_file is not None:
        raise ValueError("--save_state keeps the state of one video: drop --prompt_file")
    here = os.path.realpath(path)
    taken = [*inputs, *(file for each in outputs for file in each.all)]
    if clash := [str(file) for file in taken if os.path.realpath(file) == here]:
        raise ValueError(f"--save_state={path} is the same file as {clash[0]}; choose another name")
    check_state_path(path)
    continued = args.resume is not None and os.path.realpath(args.resume) == here
    if os.path.lexists(path) and not args.overwrite and not continued:
        raise FileExistsError(f"{path} exists; choose another --save_state or pass --overwrite")
    check_folder(path)


def read_state(args: argparse.Namespace) -> "StreamState | None":
    """The state of ``--resume``. Dtypes that are left to the program become those of the video.

    Raises:
        ValueError: It cannot be read, or holds several videos.
    """
    if args.resume is None:
        return None
    from helios_jax.sampling.stream_state import StreamState

    state = StreamState.load(args.resume)
    if state.batch > 1 or not state.seeded:
        kind = f"of {state.batch} videos at once" if state.batch > 1 else "with noise= of its own"
        raise ValueError(f"--resume={args.resume} is a stream {kind}: continue it with pipe.stream(resume=) in Python")
    for name, dtype in zip(("dtype", "vae_dtype"), state.model.dtypes, strict=True):
        if getattr(args, name) == "auto":
            setattr(args, name, dtype)
    return state


def resumed_settings(args: argparse.Namespace, state: "StreamState", drawn_seed: int) -> "SampleSettings":
    """The settings of the video, with the flags that were given.

    Raises:
        ValueError: The video has no end and is not to be streamed, or a flag contradicts its settings.
    """
    given = {name: getattr(args, name) for name in args.given}
    if "seed" in given:
        given["seed"] = drawn_seed
    if args.stream:
        given.setdefault("num_frames", None)
    settings = dataclasses.replace(state.settings, **given)
    if settings.num_frames is None and not args.stream:
        raise ValueError(f"the video of {args.resume} has no end: pass --stream, or --num_frames to end it")
    state.check_settings(settings)
    return settings


def frames_of_file(args: argparse.Namespace, request: "Request", *, chunk_frames: int, start: int) -> int | None:
    """Frames of the file, whose first chunk is ``start``; ``None`` if the video has no end."""
    if request.num_frames is None or request.num_chunks is None:
        return None
    joined = args.save_state is not None and not request.exact_frames
    return (request.num_chunks * chunk_frames if joined else request.num_frames) - start * chunk_frames
