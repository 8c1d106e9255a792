"""Runs Hopper kernels in Pallas' GPU interpreter: barriers, copies, masks and numerics as written, without a GPU.

Cases run in a separate process: simulated threads that wait for each other forever cannot be ended otherwise. The cases
of one program share a process, which imports JAX once, until one of them fails.
"""

import atexit
import json
import queue
import subprocess
import sys
import threading
from typing import Any

PRELUDE = """
import json, sys, traceback
import jax
import jax.numpy as jnp
import numpy as np
from pallas_kernels import compat

interpret = compat.InterpretGPUParams(detect_races=True, out_of_bounds_reads="uninitialized")

def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32), "bfloat16")

program = compile(json.loads(sys.stdin.readline()), "program", "exec")
for line in sys.stdin:
    case, rng = json.loads(line), np.random.default_rng(0)
    try:
        exec(program, globals())
    except BaseException:
        traceback.print_exc()
        sys.exit("failed")
    print("done", flush=True)
"""

_running: dict[str, "_Interpreter"] = {}


class _Interpreter:
    """A process that runs one program on the cases that it is given."""

    def __init__(self, program: str) -> None:
        command = [sys.executable, "-c", PRELUDE]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, **pipes, text=True)
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._send(program)

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def _send(self, value: Any) -> None:
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()

    def run(self, case: dict[str, Any], timeout: int) -> list[str]:
        """What the program prints for a case; raises queue.Empty when it is silent for ``timeout`` seconds."""
        self._send(case)
        lines: list[str] = []
        while (line := self.lines.get(timeout=timeout)) != "done":
            assert line is not None, "\n".join(lines)[-4000:]
            lines.append(line)
        return lines


def run_in_interpreter(program: str, case: dict[str, Any], timeout: int = 120) -> Any:
    """Runs ``program``, which can use ``case`` and the names of the prelude, and ends by printing JSON.

    Fails when a race is detected, or when the program prints nothing for ``timeout`` seconds.
    """
    # Taken out while it runs: after a failure the next case gets a new process.
    interpreter = _running.pop(program, None) or _Interpreter(program)
    try:
        lines = interpreter.run(case, timeout)
    except BaseException:
        interpreter.process.kill()
        raise
    _running[program] = interpreter
    assert not any("RACE DETECTED" in line for line in lines), "\n".join(lines)[:4000]
    return json.loads(lines[-1])


@atexit.register
def _stop() -> None:
    for interpreter in _running.values():
        interpreter.process.kill()
