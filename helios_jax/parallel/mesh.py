"""Meshes and the sharding of parameters.

Parameters are sharded in the manner of fully sharded data parallelism: each one along its largest axis that the
mesh divides, over all mesh axes together; how the parts meet in a computation is the compiler's choice.
"""

import contextlib
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

MIN_SHARDED_SIZE = 2**16
"""Parameters with fewer elements are replicated: sharding them costs more than it saves."""


def auto_mesh(mesh: Mesh) -> Mesh:
    """The same mesh with automatic axes: the compiler propagates shardings (``jax.make_mesh`` makes explicit ones)."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def parameter_sharding(shape: tuple[int, ...], mesh: Mesh | None) -> jax.sharding.Sharding:
    """Where a parameter of ``shape`` lives: on the default device, or sharded over ``mesh``.

    The leading axis is not used for parameters of three and more axes: it is the layer axis of a stack, which
    a scan reads one index at a time.
    """
    if mesh is None:
        return SingleDeviceSharding(jax.config.jax_default_device or jax.devices()[0])
    devices = math.prod(mesh.shape.values())
    first = 1 if len(shape) > 2 else 0
    candidates = [axis for axis in range(first, len(shape)) if shape[axis] % devices == 0]
    if not candidates or math.prod(shape) < MIN_SHARDED_SIZE:
        return NamedSharding(auto_mesh(mesh), PartitionSpec())
    largest = max(candidates, key=lambda axis: shape[axis])
    spec: list[Any] = [None] * len(shape)
    spec[largest] = mesh.axis_names
    return NamedSharding(auto_mesh(mesh), PartitionSpec(*spec))


def on_mesh_of(tree: Any) -> contextlib.AbstractContextManager:
    """Tells what is traced inside that it runs on the devices of ``tree``, if these are several.

    Kernels ask for it, since the compiler cannot divide them.
    """
    sharding = jax.tree.leaves(tree)[0].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.size > 1:
        return jax.set_mesh(sharding.mesh)
    return contextlib.nullcontext()


def replicated_beside(tree: Any) -> jax.sharding.Sharding:
    """The sharding of values that every device of the arrays in ``tree`` holds.

    What is placed so before a compiled program sees it enters as what comes out of that program, committed to the
    same devices: otherwise the first call and those after it would compile one program each.
    """
    sharding = jax.tree.leaves(tree)[0].sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    (device,) = sharding.device_set
    return SingleDeviceSharding(device)
