"""Where training's arrays live: a mesh of the axes data, fsdp and context.

Samples are split over data and fsdp together. Parameters and their optimizer state are sharded over fsdp alone
(``helios_jax.parallel.mesh``). The context axis splits the rows of a sample's clips, for batches of fewer samples than
devices. The compiler chooses the communication; the maths is that of one device.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from helios_jax.parallel.mesh import parameter_sharding
from helios_jax.training.batch import SAMPLE_AXES
from helios_jax.typing import Array
from helios_jax.user_input import whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Devices along each axis; one axis may be -1, for all remaining devices.

    Attributes:
        data: Replicas: each holds all parameters that ``fsdp`` shards, and trains on its own samples.
        fsdp: Devices that share one set of parameters, and train on their own samples.
        context: Devices that share a sample.
    """

    data: int = 1
    fsdp: int = -1
    context: int = 1

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "context"):
            if not whole_number(getattr(self, name), f"mesh.{name}", at_least=-1):
                raise ValueError(f"mesh.{name}=0 must be at least 1, or -1 for all remaining devices")
        if (self.data, self.fsdp, self.context).count(-1) > 1:
            raise ValueError(
                f"mesh.data={self.data}, mesh.fsdp={self.fsdp} and mesh.context={self.context}: only one may be -1"
            )

    def build(self) -> Mesh:
        """The mesh of all devices. Raises ValueError when they do not fit."""
        sizes, devices = [self.data, self.fsdp, self.context], jax.device_count()
        if sizes.count(-1) == 1:
            sizes[sizes.index(-1)] = devices // -math.prod(sizes) if math.prod(sizes) else 0
        if math.prod(sizes) != devices or min(sizes) < 1:
            raise ValueError(
                f"a mesh of data={self.data}, fsdp={self.fsdp}, context={self.context} does not use all of {devices} "
                "devices: their product must be that number, or one of them -1"
            )
        return jax.make_mesh(tuple(sizes), (*SAMPLE_AXES, "context"), axis_types=(AxisType.Auto,) * 3)


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a training state, by its shape."""
    return jax.tree.map(lambda array: parameter_sharding(array.shape, mesh), tree)


def place(tree: Any, mesh: Mesh) -> Any:
    """``tree`` on the mesh; leaves that are there already are not copied."""
    return jax.device_put(tree, state_shardings(tree, mesh))


def data_shard(mesh: Mesh) -> tuple[int, int]:
    """Which part of every batch this process loads: (index, number of parts).

    Raises:
        ValueError: The samples of this process are not a contiguous part of the batch.
    """
    # Neighbours along context share samples, so a block of them counts as one part of the batch.
    blocks, own = mesh.devices.reshape(-1, mesh.shape["context"]), jax.process_index()
    here = [number for number, block in enumerate(blocks) if any(device.process_index == own for device in block)]
    first, size = here[0], len(here)
    if here != list(range(first, first + size)) or first % size or len(blocks) % size:
        raise ValueError(
            f"process {jax.process_index()} holds parts {here} of {len(blocks)} of a batch, which is no contiguous "
            "share: change the mesh so that each process has whole rows of it"
        )
    return first // size, len(blocks) // size


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises ValueError unless every microbatch can be divided evenly over the axes data and fsdp.

    XLA would pad a microbatch with fewer samples than devices, and repeat computation and communication.
    """
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    parts, samples = data * fsdp, batch_size // accumulation
    if samples % parts == 0:
        return
    problem = (
        f"a microbatch of {samples} samples (batch_size={batch_size}, accumulation={accumulation}) cannot be divided "
        f"over {parts} devices (data={data} x fsdp={fsdp})"
    )
    possible = [count for count in range(1, batch_size + 1) if batch_size % (count * parts) == 0]
    if possible:
        raise ValueError(f"{problem}; accumulation can be {', '.join(map(str, possible[-4:]))}")
    raise ValueError(f"{problem}; batch_size must be a multiple of {parts}, or the mesh have fewer devices there")


def put_batch(batch: Any, batch_size: int, mesh: Mesh) -> Any:
    """The global batch, which ``check_batch`` accepts, from this process's part of it (numpy arrays)."""
    sharding = NamedSharding(mesh, PartitionSpec(SAMPLE_AXES))

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, array, (batch_size, *array.shape[1:]))

    return jax.tree.map(put, batch)


def partition_specs(tree: Any) -> list[PartitionSpec]:
    """How the mesh splits each array of a batch, in the order of ``jax.tree.leaves``.

    A field of a batch's dataclass states its own in the metadata "partition", see ``training.batch``; it holds for all
    arrays in the field. Without one only the leading axis is split, by samples.
    """

    def specs(node: Any, spec: PartitionSpec) -> Iterator[PartitionSpec]:
        for leaf in jax.tree.leaves(node, is_leaf=dataclasses.is_dataclass):
            if not dataclasses.is_dataclass(leaf):
                yield spec
                continue
            for field in dataclasses.fields(leaf):
                if not field.metadata.get("static"):
                    yield from specs(getattr(leaf, field.name), field.metadata.get("partition", spec))

    return list(specs(tree, PartitionSpec(SAMPLE_AXES)))


def microbatches(arrays: Sequence[Array], specs: Sequence[PartitionSpec], count: int, mesh: Mesh) -> list[Array]:
    """[B, ...] -> [count, B / count, ...], every sample staying on its device; inside a jitted function.

    Microbatch m holds samples m, m + count, ...: contiguous microbatches would move samples between devices, because
    each device holds contiguous samples.

    Args:
        arrays: Arrays of a batch.
        specs: From ``partition_specs``, for each array.
        count: Number of microbatches.
        mesh: The mesh of ``MeshShape``.
    """

    def split(array: Array, spec: PartitionSpec) -> Array:
        array = array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(None, *spec)))

    return [split(array, spec) for array, spec in zip(arrays, specs, strict=True)]
