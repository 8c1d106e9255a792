"""Files that survive crashes and concurrent processes: atomic replacement, locks, and claims on folders."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


def replace_text(file: pathlib.Path, text: str) -> None:
    """Writes a text file as ``replace_bytes`` does, in UTF-8."""
    replace_bytes(file, text.encode())


def replace_bytes(file: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically: now or after a crash, a reader finds either the old content or the new content.

    Raises:
        OSError: It could not be written; the old content is unchanged.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            # Without this, a power cut can leave the new name on an empty file.
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(f"cannot write {file}: {error.strerror or error}") from error
    with contextlib.suppress(OSError):  # Some network file systems cannot synchronise folders.
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_object(file: pathlib.Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON object that this library wrote.

    Args:
        file: The file.
        remedy: What to do if it is missing or damaged, for the error.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing; {remedy}") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{file} is damaged ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged (it is not a JSON object); {remedy}")
    return content


def try_lock(descriptor: int) -> bool:
    """Locks an open file, until the descriptor is closed or the process ends, however it ends.

    Args:
        descriptor: The file, opened by this process.

    Returns:
        False if another process, or another descriptor of this one, holds the lock. True on file systems without locks,
        such as some network file systems: nothing can be claimed there.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def is_at(descriptor: int, path: pathlib.Path) -> bool:
    """Whether the open file is the one at ``path``, that is, it was not removed, renamed or replaced since."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


@contextlib.contextmanager
def claimed(file: pathlib.Path, work: str) -> Iterator[None]:
    """Holds a claim that only one process can hold at a time; the system releases it however the process ends.

    Args:
        file: The file to lock, which is created, and removed at the end.
        work: The claimed work, for the error: "/runs/a is being trained".

    Raises:
        BlockingIOError: Another process holds it.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        if not try_lock(descriptor):
            os.close(descriptor)
            raise BlockingIOError(f"{work} by another process; wait until it has ended, or stop it")
        # The process that held the claim may have removed the file after it was opened here.
        if is_at(descriptor, file):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        os.close(descriptor)
