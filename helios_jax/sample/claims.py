"""Claims: only one process makes a video. The claim is a lock on the file that becomes the video's record.

The file ``fox.unfinished.json`` is created when work on fox.mp4 begins, and locked. The system gives up the lock when
the process ends, however it ends, so a killed run blocks nobody. When the video is finished, the record is written into
the space that the file already occupies, and the file is renamed ``fox.helios.json``; both work on a full disk.
"""

import json
import os
import socket
from typing import Any

from helios_jax.media.provenance import written_by_us
from helios_jax.safe_files import is_at, try_lock
from helios_jax.sample.outputs import Outputs

_SPARE = 4096
"""Bytes reserved for what the finished record adds to the first one."""


class Busy(FileExistsError):
    """Another process is making this video."""


class Claim:
    """The right to make a video; a context manager, which releases it.

    Args:
        outputs: The files of the video; their folder is created.
        record: How the video will be made.

    Raises:
        Busy: Another process holds it.
        FileExistsError: A file that this program did not write has the name of the claim.
        OSError: The folder cannot be written to, or the disk is full.
    """

    def __init__(self, outputs: Outputs, record: dict[str, Any]) -> None:
        self.outputs = outputs
        outputs.video.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = _locked(outputs)
        claim = {**record, "unfinished": {"pid": os.getpid(), "host": socket.gethostname()}}
        try:
            self._write(claim, spare=_SPARE)
        except BaseException:
            self.release()
            raise

    def finish(self, record: dict[str, Any]) -> None:
        """Writes the record of the finished video.

        Raises:
            OSError: The record has grown and the disk is full.
        """
        self._write(record, spare=0)
        os.replace(self.outputs.claim, self.outputs.record)
        self._close()

    def release(self) -> None:
        """Releases the claim and removes its file; after ``finish`` it does nothing."""
        if self._descriptor >= 0:
            self.outputs.claim.unlink(missing_ok=True)
            self._close()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    def _write(self, record: dict[str, Any], spare: int) -> None:
        """Writes in place, which needs no new disk space, and truncates the file."""
        data = json.dumps(record, indent=2).encode() + b" " * spare + b"\n"
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], written)
            os.ftruncate(self._descriptor, len(data))
            os.fsync(self._descriptor)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(self.outputs.claim)) from error


def _locked(outputs: Outputs) -> int:
    """A locked descriptor of the claim's file."""
    path = outputs.claim
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            if not try_lock(descriptor):
                raise Busy(f"{outputs.video} is being made by another process{_owner(outputs)}")
            # Between opening and locking, the previous owner may have renamed or removed the file.
            if is_at(descriptor, path):
                if os.fstat(descriptor).st_size and not written_by_us(path):
                    raise FileExistsError(f"{path} was not written by helios-sample, so it is not replaced; move it")
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _owner(outputs: Outputs) -> str:
    """The owner of the claim, if its file names one."""
    try:
        owner = json.loads(outputs.claim.read_text())["unfinished"]
        return f" (pid {owner['pid']} on {owner['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
