"""Test set-up: CPU, shape checks on, and flax.nnx in its tree-safe subset."""

import importlib.util
import os
import shutil
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
_started_here = "HELIOS_JAX_TEST_CACHE" not in os.environ
_cache = os.environ.setdefault("HELIOS_JAX_TEST_CACHE", tempfile.mkdtemp(prefix="helios_jax_tests_"))
os.environ["XDG_CACHE_HOME"] = _cache  # the user's caches stay as they are
# Workers, and the commands that tests start, compile much the same programs: each of them once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(_cache, "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from jaxtyping import install_import_hook

# Every jaxtyping annotation of the library becomes a check. The hook must precede the first import.
if importlib.util.find_spec("beartype"):
    sys.path.insert(0, os.path.dirname(__file__))
    install_import_hook(["helios_jax", "pallas_kernels", "data"], "shape_checks.check")

import flax

# These defaults of flax will flip; running with them off keeps the library independent of the flip.
flax.config.update("nnx_graph_mode", False)
flax.config.update("nnx_graph_updates", False)


def pytest_unconfigure() -> None:
    """The process that made the cache removes it."""
    if _started_here:
        shutil.rmtree(_cache, ignore_errors=True)
