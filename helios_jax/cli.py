"""What the command lines share: quiet logging, and errors of the user as one line."""

import sys
from collections.abc import Callable

from absl import logging


def run_command(program: str, work: Callable[[], int | None]) -> int:
    """Runs ``work`` and returns the exit code: that of ``work``, or 0 when it returns none.

    Bad input, a full disk (ValueError, OSError) and numbers that overflow (FloatingPointError) become one line on
    standard error and code 1, an interruption code 130. Anything else is a bug and keeps its traceback.
    """
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX log every step of their work.
    try:
        return work() or 0
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; what was written so far is kept", file=sys.stderr)
        return 130
