"""SIGTERM: recorded from the start of the command, acted on between two steps.

A handler that saved at once could find a half-updated state, at different steps in different processes.
"""

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

PREEMPTED = 75
"""Exit code of a run that stopped on SIGTERM and lost nothing: start it again (EX_TEMPFAIL)."""


@dataclasses.dataclass
class Sigterm:
    """A signal handler that records SIGTERM.

    Attributes:
        received: Whether the signal has arrived.
    """

    received: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Records the signal."""
        self.received = True

    def stops_after(self, step: int) -> bool:
        """Whether to stop after this step: the same answer in all processes."""
        import jax

        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # JAX's coordinator handles the signal and chooses a step for all processes that none of them has passed.
            return multihost_utils.reached_preemption_sync_point(step)
        return self.received


@contextlib.contextmanager
def noted_sigterm() -> Iterator[Sigterm]:
    """Records SIGTERM instead of ending the process. A nested block yields the handler of the outer one."""
    before = signal.getsignal(signal.SIGTERM)
    if isinstance(before, Sigterm):
        yield before
        return
    note = Sigterm()
    # Python sets handlers in the main thread only, and with several processes JAX's coordinator already has its own.
    if threading.current_thread() is not threading.main_thread() or _of_several_processes():
        yield note
        return
    signal.signal(signal.SIGTERM, note)
    try:
        yield note
    finally:
        signal.signal(signal.SIGTERM, before)


def _of_several_processes() -> bool:
    # Does not import JAX, because the command installs the handler before that.
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
