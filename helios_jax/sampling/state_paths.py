"""Which files are stream states, and where one may be written; imports neither JAX nor NumPy."""

import contextlib
import os
import pathlib

from helios_jax.user_input import user_path

STATE_START = b"helios_jax stream state "
"""The first bytes of a state."""


def is_state_file(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` begins as a state does; a few bytes are read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(len(STATE_START)) == STATE_START
    return False


def check_state_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path of a state to be written: it is free, or that of another state.

    Raises:
        FileExistsError: There is something else.
    """
    path = user_path(path, "the state")
    if os.path.lexists(path) and not is_state_file(path):
        raise FileExistsError(f"{path} exists and is not a stream state, so it is not replaced; choose another path")
    return path
