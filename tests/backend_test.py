"""A platform without devices is an error that says what to do."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "gpu", "quantum"])
def test_no_device(platform):
    code = (
        "import sys; from helios_jax.backend import backend; from helios_jax.cli import run_command\n"
        "sys.exit(run_command('tool', lambda: int(backend() == 'nothing')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"tool: JAX finds no device of the platform '{platform}'")
    assert result.stderr.count("\n") == 1
