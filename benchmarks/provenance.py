"""What a file of figures must say about the run that produced it: card, commit and command."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path


def provenance() -> dict[str, str | None]:
    """Card, commit and command of this process.

    Asks other programs, since JAX would take the device memory that the processes started next need.
    """
    flags = [f"XLA_FLAGS={shlex.quote(os.environ['XLA_FLAGS'])}"] if "XLA_FLAGS" in os.environ else []
    return {
        "card": _output("nvidia-smi", "--query-gpu=name,power.limit", "--format=csv,noheader") or platform.machine(),
        "commit": _output("git", "describe", "--always", "--dirty", "--exclude=*"),
        "command": " ".join([*flags, shlex.join(["python", *sys.argv])]),
    }


def _output(*command: str) -> str | None:
    """What a program prints; ``None`` if it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
