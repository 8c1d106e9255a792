"""The choice of an implementation (fastest first, errors, meshes) and the gradients of the reference."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import devices
from pallas_kernels.dispatch import Implementation, Op, hopper_obstacle, with_reference_gradient

MESH_PROGRAM = """
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from pallas_kernels import devices

answers = []

def ask(x):
    answers.append(devices.compiler_splits_work())
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


def test_kernels_know_when_the_compiler_divides_the_work():
    """On one device, on a mesh of four, inside shard_map, and on a mesh of one."""
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""}
    command = [sys.executable, "-c", MESH_PROGRAM]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split("\n")[-2] == "[False, True, False, False]"


def op(**obstacles) -> Op:
    """An op whose implementations return their names."""
    return Op(
        "double",
        {
            name: Implementation(run=lambda x, name=name: name, operand_obstacle=obstacle)
            for name, obstacle in obstacles.items()
        },
    )


def test_the_first_implementation_that_can_run_is_chosen():
    double = op(fast=lambda x: "x is odd" if x % 2 else None, slow=lambda x: None)
    assert double.run(None, 2) == double.choose(None, 2) == "fast"
    assert double.run(None, 3) == double.choose(None, 3) == "slow"
    assert double.run("slow", 2) == "slow"


def test_an_implementation_that_cannot_run_says_why():
    double = op(fast=lambda x: "x is odd" if x % 2 else None, slow=lambda x: None)
    message = "double with implementation='fast' cannot run: x is odd; implementation=None takes the fastest that can"
    with pytest.raises(NotImplementedError, match=message):
        double.run("fast", 3)


def test_an_unknown_implementation_is_refused_with_the_names_of_all():
    with pytest.raises(ValueError, match="unknown double implementation 'best'; expected 'fast', 'slow' or None"):
        op(fast=lambda x: None, slow=lambda x: None).run("best", 2)


def test_a_kernel_requested_on_a_mesh_says_what_to_do(monkeypatch):
    kernel = Implementation(run=lambda: "kernel", device_obstacle=hopper_obstacle)
    double = Op("double", {"pallas": kernel, "xla": Implementation(run=lambda: "xla")})
    assert double.run(None) == "xla"
    with pytest.raises(NotImplementedError, match=r"it needs a GPU of compute capability 9\.0 as the"):
        double.run("pallas")
    monkeypatch.setattr(devices, "is_hopper", lambda: True)
    assert double.run(None) == "kernel"
    monkeypatch.setattr(devices, "compiler_splits_work", lambda: True)
    assert double.run(None) == "xla"
    with pytest.raises(NotImplementedError, match=r"inside jax\.shard_map"):
        double.run("pallas")


def test_the_gradient_is_that_of_the_reference():
    """The forward pass gives 3 x, the gradient is that of x y^2, and an absent operand has none."""
    calls = []

    def forward(x, y, z, *, power):
        calls.append(power)
        return 3 * x

    def reference(x, y, z, *, power):
        assert z is None
        return x * y**power

    function = with_reference_gradient(forward, reference)
    x, y = jnp.array([1.0, 2.0]), jnp.array([5.0, 7.0])
    assert function(x, y, None, power=2).tolist() == [3.0, 6.0]
    dx, dy = jax.grad(lambda x, y: function(x, y, None, power=2).sum(), argnums=(0, 1))(x, y)
    assert dx.tolist() == [25.0, 49.0]
    assert dy.tolist() == [10.0, 28.0]
    assert set(calls) == {2}
