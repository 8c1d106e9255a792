"""Claims output files before the work begins, so that no work is lost and no other file is replaced."""

import contextlib
import errno
import os
import pathlib
import tempfile
from collections.abc import Generator

from helios_jax.media.provenance import written_by_us
from helios_jax.safe_files import is_at, try_lock
from helios_jax.typing import Path
from helios_jax.user_input import user_path


class Claim:
    """A file that belongs to this process until ``release``; other processes that claim it are refused.

    Args:
        path: The file; ``~`` is expanded and its folder is created.
        suffix: The ending that it must have, such as ".mp4"; upper case is accepted.
        start: The file's first content, which marks it as ours.
        overwrite: Replace the file if this library wrote it. Other files are never replaced.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is off, it is not one of ours, or another process writes it.
        ValueError: The path does not have that ending, or is not a valid path.
        OSError: The folder cannot be created or written to.
    """

    def __init__(self, path: Path, suffix: str, *, start: bytes, overwrite: bool) -> None:
        self.path = user_path(path)
        if self.path.suffix.lower() != suffix:
            raise ValueError(f"the path must end in {suffix}, got {self.path}")
        _make_folder(self.path)
        self._descriptor = -1
        if os.path.lexists(self.path):
            _remove(self.path, overwrite)
        self._descriptor = _create(self.path)
        try:
            if os.write(self._descriptor, start) < len(start):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.release(remove=True)
            raise type(error)(f"cannot write {self.path}: {error.strerror}") from error

    def verify(self) -> None:
        """Raises FileNotFoundError unless the claimed file is still at the path."""
        if not is_at(self._descriptor, self.path):
            raise FileNotFoundError(f"{self.path} was moved, removed or replaced while it was written")

    def release(self, *, remove: bool = False) -> None:
        """Releases the file, and with ``remove`` deletes it; a second call does nothing."""
        if self._descriptor < 0:
            return
        if remove and is_at(self._descriptor, self.path):
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)


@contextlib.contextmanager
def replacement(path: pathlib.Path) -> Generator[pathlib.Path]:
    """A new file in the folder of ``path``, which replaces ``path`` in one step when the ``with`` block ends normally.

    After an error it is removed and ``path`` is unchanged. The name of the new file is unique.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".helios_jax-", suffix=".part")
    copy = pathlib.Path(name)
    try:
        os.fchmod(descriptor, path.stat().st_mode & 0o777)  # temporary files are readable by their owner only
        os.close(descriptor)
        yield copy
        os.replace(copy, path)
    finally:
        copy.unlink(missing_ok=True)


def _make_folder(path: pathlib.Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"cannot write {path}: a part of {path.parent} is a file, not a folder") from error
    except OSError as error:
        raise type(error)(f"cannot create the folder {path.parent}: {error.strerror}") from error


def _create(path: pathlib.Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise FileExistsError(f"{path} was created by another process just now; choose another path") from None
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error.strerror}") from error
    try:
        _lock(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove(path: pathlib.Path, overwrite: bool) -> None:
    """Removes a file of ours before it is replaced. Hard links to it keep their content."""
    if not overwrite:
        raise FileExistsError(f"{path} exists; choose another path or pass overwrite=True")
    if not written_by_us(path):
        kind = "is a folder" if path.is_dir() else "was not written by helios_jax"
        raise FileExistsError(f"{path} {kind}, so it is not replaced; choose another path")
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _lock(descriptor, path)
            # Only the process that holds the lock removes the file, and only if no other replaced it before.
            if not is_at(descriptor, path):
                raise FileExistsError(f"{path} was replaced by another process just now; choose another path")
            path.unlink()
        finally:
            os.close(descriptor)
    except FileExistsError:
        raise
    except OSError as error:
        raise type(error)(f"cannot replace {path}: {error.strerror}") from error


def _lock(descriptor: int, path: pathlib.Path) -> None:
    """Locks the file. Raises FileExistsError if another has the lock."""
    if not try_lock(descriptor):
        raise FileExistsError(
            f"{path} is being written by another process or by a writer that was not closed; choose another path"
        )
