"""A platform without devices is an error that says what to do."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "gpu", "quantum"])
def test_no_device(platform):
    code = "from helios_jax.backend import backend; backend()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert f"ValueError: JAX finds no device of the platform '{platform}'" in result.stderr
