"""Test set-up: CPU, shape checks on, and flax.nnx in its tree-safe subset."""

import gc
import importlib.machinery
import importlib.util
import os
import pathlib
import shutil
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("XLA_FLAGS", "")
# The user's caches stay as they are.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="helios_jax_tests_")
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Most of the time goes into compiling small programs. Without LLVM's optimisation that is a tenth faster; what they
    # do is slower, so that tests that train gain and those that sample lose. Workers, and the processes that tests
    # start, share what they compile.
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["XDG_CACHE_HOME"], "programs")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
else:  # On GPUs it goes into trying algorithms for references.
    os.environ["XLA_FLAGS"] += " --xla_gpu_autotune_level=0 --xla_gpu_experimental_enable_fusion_autotuner=false"

import flax
import jax
import pytest
from jaxtyping import install_import_hook

TESTS = os.path.dirname(__file__)


class PathFinder(importlib.machinery.PathFinder):
    """Also finds data/ and experiments/ under their import names; the hook checks only what a PathFinder finds."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        moved = fullname in ("helios_jax.data", "helios_jax.experiments")
        return super().find_spec(fullname, [os.path.dirname(TESTS)] if moved else path, target)


# Every jaxtyping annotation of the library becomes a check. The hook must precede the first import.
if importlib.util.find_spec("beartype"):
    sys.path.insert(0, TESTS)
    sys.meta_path.insert(0, PathFinder)
    install_import_hook(["helios_jax", "pallas_kernels"], "shape_checks.check")

# These defaults of flax will flip; running with them off keeps the library independent of the flip.
flax.config.update("nnx_graph_mode", False)
flax.config.update("nnx_graph_updates", False)


MOST_MAPPINGS = 20_000
"""Memory mappings of a process at which its programs are dropped."""


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drops compiled programs before a process reaches Linux's limit of 65530 mappings, at which XLA aborts it.

    On CPUs every program takes several mappings, and JAX keeps all programs. Those that are needed again are read from
    the cache on disk.
    """
    table = pathlib.Path("/proc/self/maps")
    if nextitem is not None and nextitem.path == item.path and item.get_closest_marker("slow") is None:
        return  # counting takes milliseconds
    if table.exists() and table.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the caches, in the process that created them."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
