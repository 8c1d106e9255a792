"""What the command lines share: quiet logging, signals, and errors of the user as one line."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from absl import logging


def run_command(program: str, work: Callable[[], int | None]) -> int:
    """Runs ``work`` and returns the exit code: that of ``work``, or 0 when it returns none.

    Bad input, a full disk (ValueError, OSError) and numbers that overflow (FloatingPointError) become one line on
    standard error and code 1, an interruption code 130. Anything else is a bug and keeps its traceback.
    """
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX log every step of their work.
    try:
        return work() or 0
    except (ValueError, OSError, FloatingPointError, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        message = "interrupted; what was written so far is kept" if interrupted else error
        print(f"{program}: {message}", file=sys.stderr)
        _wait_for_devices()  # The error still holds the frames of its traceback, and so all that is in flight.
        return 130 if interrupted else 1


Check = Callable[[], None]
"""To be called now and then by long work."""


def run_interruptible(program: str, work: Callable[[Check], int | None]) -> int:
    """``run_command`` for long work: SIGTERM interrupts it as SIGINT does.

    The check that ``work`` is given raises a KeyboardInterrupt that got lost: Python drops exceptions that are raised
    in a garbage collection, where JAX has a callback.
    """

    def guarded() -> int | None:
        with _interruptible() as check:
            return work(check)

    return run_command(program, guarded)


@contextlib.contextmanager
def _interruptible() -> Iterator[Check]:
    told: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        told.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if told:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_devices() -> None:
    """Waits for dispatched work: where it ends after the interpreter has, it aborts the process."""
    jax = sys.modules.get("jax")
    for array in jax.live_arrays() if jax else ():
        if not array.is_deleted():
            with contextlib.suppress(RuntimeError):  # The work may have failed.
                array.block_until_ready()
