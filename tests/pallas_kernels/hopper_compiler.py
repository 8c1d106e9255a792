"""Compiles for an H200 on a machine without a GPU, and reports what the assembler says.

Needs, in addition to the test environment, NVIDIA's assembler and JAX's CUDA plugin, but no driver:

    pip install --no-deps jax-cuda13-plugin==$JAX jax-cuda13-pjrt==$JAX nvidia-cuda-nvcc nvidia-nvvm

with $JAX the version of jax that is installed. Without them the tests that use this are skipped.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 151397597184
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  device_vendor: "NVIDIA Corporation" name: "NVIDIA H200" device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA" device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 patch: 0 }
"""

PRELUDE = """
import sys
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

topology = topologies.get_topology_desc(platform="cuda", target_config=sys.argv[1], topology="1x1x1")
sharding = NamedSharding(topologies.make_mesh(topology, (1,), ("x",)), PartitionSpec())

def array(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
"""


def compile_for_hopper(program: str, timeout: int = 180) -> dict[str, int]:
    """Runs ``program``, which calls ``jax.jit(f).lower(array(...), ...).compile()``, and adds up its kernels' reports.

    Returns the bytes of spilled registers and of shared memory, the warnings about serialised wgmma, and the number
    of kernels. Skips the calling test when the compiler is not installed.
    """
    toolkit = _toolkit()
    with tempfile.TemporaryDirectory() as dump:
        environment = dict(
            os.environ,
            PATH=f"{toolkit / 'bin'}:{os.environ['PATH']}",
            JAX_PLATFORMS="cpu",
            XLA_FLAGS=f"--xla_gpu_cuda_data_dir={toolkit}",
            MOSAIC_GPU_DUMP_PTXAS="1",
            MOSAIC_GPU_DUMP_TO=dump,
        )
        command = [sys.executable, "-c", PRELUDE + program, H200]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        assert result.returncode == 0, result.stderr[-4000:]
        reports = [path.read_text() for path in Path(dump).glob("*.ptxas")]
        resources = [path.read_text() for path in Path(dump).glob("*.resources.txt")]
    return {
        "kernels": len(reports),
        "spilled": sum(int(n) for text in reports for n in re.findall(r"(\d+) bytes spill", text)),
        "serialised": sum(len(re.findall(r"C75\d\d", text)) for text in reports),
        "shared_memory": max(int(n) for text in resources for n in re.findall(r"smem_scratch_bytes=(\d+)", text)),
    }


def _toolkit() -> Path:
    """The folder of NVIDIA's packages that holds the assembler."""
    for name in ("jax_plugins", "nvidia"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"no {name} packages are installed; hopper_compiler.py says what to install")
    for root in importlib.util.find_spec("nvidia").submodule_search_locations:
        toolkit = Path(root) / "cu13"
        if (toolkit / "bin" / "ptxas").exists() and (toolkit / "nvvm").exists():
            return toolkit
    pytest.skip("nvidia-cuda-nvcc or nvidia-nvvm is not installed; hopper_compiler.py says what to install")
