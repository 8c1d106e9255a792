"""Helpers of the command lines: quiet logging, signals, and user errors as one line."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from absl import logging


def run_command(program: str, work: Callable[[], int | None]) -> int:
    """Runs ``work`` and returns the exit code: the one that ``work`` returns, or 0 when it returns ``None``.

    Bad input, a full disk (ValueError, OSError) and numbers that overflow (FloatingPointError) become one line on
    standard error and exit code 1; an interruption becomes exit code 130. Anything else is a bug and keeps its
    traceback.
    """
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX log every step of their work.
    try:
        return work() or 0
    except (ValueError, OSError, FloatingPointError, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        message = "interrupted; what was written so far is kept" if interrupted else error
        print(f"{program}: {message}", file=sys.stderr)
        # Wait here, while the error's traceback keeps its frames alive, and with them the arrays of the work in flight.
        _wait_for_devices()
        return 130 if interrupted else 1


Check = Callable[[], None]
"""Called regularly by long work; raises KeyboardInterrupt after a signal."""


def run_interruptible(program: str, work: Callable[[Check], int | None]) -> int:
    """``run_command`` for long work: SIGTERM interrupts it as SIGINT does.

    ``work`` gets a check that raises KeyboardInterrupt again if the first one was lost: Python drops exceptions that
    are raised during garbage collection, where JAX has a callback.
    """

    def guarded() -> int | None:
        with _interruptible() as check:
            return work(check)

    return run_command(program, guarded)


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


def _wait_for_devices() -> None:
    """Waits for dispatched work: if it outlives the interpreter, the process aborts."""
    jax = sys.modules.get("jax")
    for array in jax.live_arrays() if jax else ():
        if not array.is_deleted():
            with contextlib.suppress(RuntimeError):  # The work may have failed.
                array.block_until_ready()
