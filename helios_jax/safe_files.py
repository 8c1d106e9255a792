"""Files that survive interruptions and rivals: small files are replaced whole, and work on a folder is claimed."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


def replace_text(file: pathlib.Path, text: str) -> None:
    """Writes a small file so that a reader, now or after a crash, finds the old content or the new one, never a part.

    Raises:
        OSError: It could not be written; the old content is still there.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
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


@contextlib.contextmanager
def claimed(file: pathlib.Path, work: str) -> Iterator[None]:
    """Holds a claim that only one process can have at a time; the system releases it however the process ends.

    Args:
        file: The claim, a new file next to what is worked on; removed at the end.
        work: What the claim is for, for the error: "/runs/a is being trained".

    Raises:
        BlockingIOError: Another process has it.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError(f"{work} by another process; wait until it has ended, or stop it") from None
        except OSError:
            # A file system without locks; nothing can be claimed on it.
            os.close(descriptor)
            yield
            return
        # The process that held the claim may have removed the file after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == file.stat().st_ino:
                break
        os.close(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        os.close(descriptor)
