"""What the command lines share: quiet logging, and errors of the user as one line."""

import sys
from collections.abc import Callable

from absl import logging


def run_command(program: str, work: Callable[[], None]) -> int:
    """Runs ``work`` and returns the exit code.

    Bad input (ValueError, FileNotFoundError, FileExistsError) becomes one line on standard error and code 1, an
    interruption code 130. Anything else is a bug and keeps its traceback.
    """
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX log every step of their work.
    try:
        work()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; what was written so far is kept", file=sys.stderr)
        return 130
    return 0
