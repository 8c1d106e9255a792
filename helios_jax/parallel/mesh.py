"""Meshes and the sharding of parameters.

The names of a mesh's axes say what they are for:

    fsdp      shards parameters and their optimizer state; in training also splits the samples of a batch
    data      replicas: every device along it holds the same parameters; splits samples
    context   devices that share a sample: holds replicas of parameters; in training splits the rows of latents
    (others)  shard parameters, as fsdp does

Parameters are sharded as in fully sharded data parallelism: each one over all sharding axes together, along its
largest axis that can be divided evenly. The compiler decides how a computation combines the parts.
"""

import contextlib
import functools
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from helios_jax.backend import backend

REPLICATING = ("data", "context")
"""Mesh axes that do not shard parameters."""

MIN_SHARDED_SIZE = 2**16
"""Parameters with fewer elements are replicated: sharding them costs more than it saves."""


def auto_mesh(mesh: Mesh) -> Mesh:
    """The same mesh with automatic axes: the compiler propagates shardings (``jax.make_mesh`` makes explicit ones)."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def parameter_sharding(shape: tuple[int, ...], mesh: Mesh | None) -> jax.sharding.Sharding:
    """Where a parameter of ``shape`` lives: on the default device, or on ``mesh``, sharded by the names of its axes."""
    if mesh is None:
        backend()  # explains why there is no device
        return SingleDeviceSharding(jax.config.jax_default_device or jax.devices()[0])
    names = tuple(name for name in mesh.axis_names if name not in REPLICATING)
    parts = math.prod(mesh.shape[name] for name in names)
    # The first of three or more axes is the layer axis of a stack, which a loop reads one index at a time: if it were
    # sharded, each layer would come from a single device. Axes are chosen by shape alone, so a parameter's optimizer
    # moments and its checkpoints get the same placement without knowing its path.
    first = 1 if len(shape) > 2 else 0
    candidates = [axis for axis in range(first, len(shape)) if shape[axis] % parts == 0]
    if not names or not candidates or math.prod(shape) < MIN_SHARDED_SIZE:
        return NamedSharding(auto_mesh(mesh), PartitionSpec())
    largest = max(candidates, key=lambda axis: shape[axis])
    spec: list[Any] = [None] * len(shape)
    spec[largest] = names
    return NamedSharding(auto_mesh(mesh), PartitionSpec(*spec))


def on_mesh_of(tree: Any) -> contextlib.AbstractContextManager:
    """Enters the mesh that the arrays of ``tree`` are on, if it has several devices; otherwise does nothing.

    Kernels look up the mesh while they are traced: the compiler cannot partition a kernel, so on a mesh of several
    devices the plain references run instead.
    """
    sharding = jax.tree.leaves(tree)[0].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.size > 1:
        return jax.set_mesh(sharding.mesh)
    return contextlib.nullcontext()


def readable[T](tree: T) -> T:
    """``tree`` with arrays that every process can read, for example with ``np.asarray``.

    A process can read only what its own devices hold, so arrays that are sharded over several processes are gathered on
    each device. That is a collective operation: every process must call this, in the same order. Other arrays are
    returned unchanged.
    """

    def gather(array: Any) -> Any:
        if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
            return array
        assert isinstance(array.sharding, NamedSharding), "only a mesh has devices of several processes"
        return _with_sharding(array, NamedSharding(array.sharding.mesh, PartitionSpec()))

    return jax.tree.map(gather, tree)


def replicated_like(tree: Any) -> jax.sharding.Sharding:
    """The sharding that keeps a full copy of a value on every device of the arrays in ``tree``.

    Use it for a compiled program's first inputs: they are then committed to the same devices as the program's outputs.
    Otherwise the first call and the later ones would compile one program each.
    """
    sharding = jax.tree.leaves(tree)[0].sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    (device,) = sharding.device_set
    return SingleDeviceSharding(device)


@functools.partial(jax.jit, static_argnums=1)
def _with_sharding(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(array, sharding)
