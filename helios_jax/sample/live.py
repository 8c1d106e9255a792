"""Prompts typed on standard input while a video is made."""

import io
import queue
import sys
import threading
from collections.abc import Iterable


class TypedPrompts:
    """The lines of an input, read in the background.

    Args:
        source: The input; ``None`` counts as an input that has ended.
    """

    def __init__(self, source: Iterable[str] | None) -> None:
        self._source = source
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._at_end = threading.Event()
        # A thread, because reading from a terminal blocks; a daemon, so that it does not keep the process alive.
        threading.Thread(target=self._read, daemon=True).start()

    @classmethod
    def from_standard_input(cls) -> "TypedPrompts":
        """The lines typed by the user; bytes that are not UTF-8 are replaced."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        return cls(sys.stdin)

    @property
    def ended(self) -> bool:
        """Whether the input has ended and every line has been returned."""
        return self._at_end.is_set() and self._lines.empty()

    def new(self) -> list[str]:
        """The lines since the last call, without waiting; blank ones are skipped."""
        found = []
        while not self._lines.empty():
            found.append(self._lines.get())
        return [line for line in found if line]

    def _read(self) -> None:
        try:
            for line in self._source or ():
                self._lines.put(line.strip())
        except (OSError, ValueError):  # closed while it was read
            pass
        finally:
            self._at_end.set()
