"""What the kernels take for granted of Pallas and of the mesh they are traced under."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import compat, dispatch
from pallas_kernels.adaln.hopper import residual_norm

MESH_PROGRAM = """
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from pallas_kernels import compat

answers = []

def ask(x):
    answers.append(compat.compiler_splits_work())
    return x

x = jnp.zeros((4, 2))
jax.jit(ask)(x)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
with jax.set_mesh(mesh):
    jax.jit(ask)(x)
    jax.jit(jax.shard_map(ask, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")))(x)
with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])):
    jax.jit(ask)(x)
print(answers)
"""


def lowered() -> str:
    """The code of a kernel for a GPU."""
    x, row = jax.ShapeDtypeStruct((1, 8, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((1, 1, 1024), jnp.float32)

    def call(x, row):
        options = {"num_history": 0, "norm_history": True, "eps": 1e-6}
        return residual_norm(x, x, gate=row, scale=row, shift=row, **options)

    return jax.jit(call).trace(x, row).lower(lowering_platforms=("cuda",)).as_text()


def test_the_code_of_a_kernel_does_not_depend_on_those_before_it():
    first = lowered()
    assert "mosaic_gpu" in first
    assert lowered() == first


def test_kernels_know_when_the_compiler_divides_the_work():
    """On one device, on a mesh of four, inside shard_map, and on a mesh of one."""
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""}
    command = [sys.executable, "-c", MESH_PROGRAM]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split("\n")[-2] == "[False, True, False, False]"


def test_a_kernel_asked_for_on_a_mesh_says_what_to_do(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compat, "is_hopper", lambda: True)
    assert dispatch.use_pallas("op", None, None)
    monkeypatch.setattr(compat, "compiler_splits_work", lambda: True)
    assert not dispatch.use_pallas("op", None, None)
    with pytest.raises(NotImplementedError, match=r"inside jax\.shard_map"):
        dispatch.use_pallas("op", "pallas", None)
