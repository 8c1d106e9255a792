"""Helpers for command lines: quiet logging, signals, and short messages for user errors."""

import argparse
import contextlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from absl import app, logging

MAX_LINES = 3
"""Lines of an error message that are shown; messages of other libraries can fill pages."""

MAX_LENGTH = 600
"""Characters of a line that are shown."""

KEPT = "what was written so far is kept"
"""What is said about an unfinished run, unless the command says something else."""


def run_program(
    program: str,
    main: Callable[[Any], int],
    parse: Callable[[Sequence[str]], argparse.Namespace],
    *,
    leaves: str = KEPT,
) -> None:
    """Runs a command from its arguments to ``sys.exit``; SIGINT and SIGTERM end it at any time with code 130.

    Args:
        program: The command's name.
        main: Does the work and returns the exit code.
        parse: Reads the arguments, ``argv[0]`` included.
        leaves: What becomes of the files of an interrupted run.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app.run(main, flags_parser=parse)
    except KeyboardInterrupt:
        print(f"{program}: interrupted; {leaves}", file=sys.stderr)
        sys.exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run_command(program: str, work: Callable[[], int | None], *, leaves: str = KEPT) -> int:
    """Runs ``work`` and returns the exit code: the one that ``work`` returns, or 0 when it returns ``None``.

    Bad input, a full disk (ValueError, OSError), numbers that overflow (FloatingPointError) and a lack of memory become
    a line or two on standard error and exit code 1; an interruption becomes exit code 130. Anything else is a bug and
    keeps its traceback. Warnings are one line each.
    """
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX log every step of their work.
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {_short(str(message))}\n"
    try:
        return work() or 0
    except BrokenPipeError:
        # The reader of standard output has exited. Python flushes it once more at exit, and that must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"{program}: standard output was closed; {leaves}", file=sys.stderr)
        return 1
    except (ValueError, OSError, FloatingPointError, MemoryError, KeyboardInterrupt, RuntimeError) as error:
        message = f"interrupted; {leaves}" if isinstance(error, KeyboardInterrupt) else _message(error)
        if message is None:
            raise
        print(f"{program}: {message}", file=sys.stderr)
        # Wait here, while the error's traceback keeps its frames alive, and with them the arrays of the work in flight.
        wait_for_devices()
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        warnings.formatwarning = before


def _message(error: BaseException) -> str | None:
    """The message for an error; ``None`` if the error is a bug."""
    text = str(error)
    if isinstance(error, RuntimeError):
        # JAX has no error type for exhausted device memory.
        if "RESOURCE_EXHAUSTED" not in text:
            return None
        wanted = re.search(r"allocat\w* ([\d.]+ ?[KMGT]?i?B|\d+ bytes)", text)
        size = f" when {wanted[1]} more were needed" if wanted else ""
        return (
            f"the device ran out of memory{size}; use fewer pixels or videos at once, vae_slice_frames=1, or a device "
            "with more memory that no other process uses"
        )
    if isinstance(error, MemoryError):
        return _short(text) or "the machine ran out of memory; use smaller inputs or a machine with more memory"
    return _short(text) or type(error).__name__


def _short(text: str) -> str:
    """The first lines of a message, without blank ones."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    shown = [line if len(line) <= MAX_LENGTH else f"{line[:MAX_LENGTH]}..." for line in lines[:MAX_LINES]]
    return "\n".join(shown) + (" ..." if len(lines) > MAX_LINES else "")


Check = Callable[[], None]
"""Called regularly by long work; raises KeyboardInterrupt after a signal."""


def run_interruptible(program: str, work: Callable[[Check], int | None], *, leaves: str = KEPT) -> int:
    """``run_command`` for long work: SIGTERM interrupts it as SIGINT does.

    ``work`` gets a check that raises KeyboardInterrupt again if the first one was lost: Python drops exceptions that
    are raised during garbage collection, where JAX has a callback.
    """

    def guarded() -> int | None:
        with _interruptible() as check:
            return work(check)

    return run_command(program, guarded, leaves=leaves)


@contextlib.contextmanager
def _interruptible() -> Iterator[Check]:
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_devices() -> None:
    """Waits for dispatched work: if it outlives the interpreter, the process aborts."""
    arrays: Sequence[Any] = ()
    if jax := sys.modules.get("jax"):
        # If no backend could start, there are no arrays, and asking for them fails like every other call.
        with contextlib.suppress(RuntimeError, AssertionError):
            arrays = jax.live_arrays()
    for array in arrays:
        if not array.is_deleted():
            with contextlib.suppress(RuntimeError):  # The work may have failed.
                array.block_until_ready()
