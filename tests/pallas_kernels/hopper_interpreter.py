"""Runs Hopper kernels in Pallas' GPU interpreter: barriers, copies, masks and numerics as written, without a GPU.

Every run is a process of its own: simulated threads that wait for each other forever cannot be ended otherwise.
"""

import json
import subprocess
import sys
from typing import Any

PRELUDE = """
import json, sys
import jax
import jax.numpy as jnp
import numpy as np
from pallas_kernels import compat

case = json.loads(sys.argv[1])
rng = np.random.default_rng(0)
interpret = compat.InterpretGPUParams(detect_races=True, out_of_bounds_reads="uninitialized")

def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32), "bfloat16")
"""


def run_in_interpreter(program: str, case: dict[str, Any], timeout: int = 120) -> Any:
    """Runs ``program``, which finds ``case`` and whatever the prelude defines, and ends in printing JSON.

    Fails when a race is detected, or when the program does not end in ``timeout`` seconds.
    """
    command = [sys.executable, "-c", PRELUDE + program, json.dumps(case)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "RACE DETECTED" not in result.stdout + result.stderr, result.stdout[:4000]
    return json.loads(result.stdout.splitlines()[-1])
