"""A distillation in a process that kills itself, before a call of one of its programs or in the middle of a checkpoint.

python killed_distillation.py WORKDIR MEMORY [PROGRAM CALL | checkpoint STEP]
"""

import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from toy_distillation import short_run

from helios_jax.training import trainer
from helios_jax.training.distiller import Distilling

STEPS = 3


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(number: int, program: Callable[..., Any]) -> Callable[..., Any]:
    """The program, whose call with that number, from 0, ends the process."""
    calls = iter(range(number + 1))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            die()
        return program(*args, **kwargs)

    return call


def die_in_program(name: str, number: int) -> None:
    compiled = Distilling._compile

    def compile_with_kill(run: Distilling) -> None:
        compiled(run)
        setattr(run, name, before_call(number, getattr(run, name)))

    Distilling._compile = compile_with_kill


def die_in_checkpoint(folder: pathlib.Path, step: int) -> None:
    """Ends the process when the unfinished checkpoint of that step holds its first file."""

    def watch() -> None:
        while not any(path.is_file() for path in folder.glob(f"{step}.orbax-checkpoint-tmp/**/*")):
            time.sleep(1e-4)
        die()

    threading.Thread(target=watch, daemon=True).start()


def main(workdir: str, memory: str, place: str = "", number: str = "0") -> int:
    if place == "checkpoint":
        die_in_checkpoint(pathlib.Path(workdir) / "checkpoints", int(number))
    elif place:
        die_in_program(place, int(number))
    trainer.as_json = lambda experiment: {"run": "toy"}
    return trainer.train(short_run(STEPS, memory), workdir)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
