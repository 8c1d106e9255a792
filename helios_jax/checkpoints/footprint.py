"""The memory that a checkpoint's weights take on a device, known from its settings alone."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.checkpoints.components import COMPONENTS
from helios_jax.checkpoints.settings import PipelineSettings
from helios_jax.parallel.devices import bytes_in_words
from helios_jax.parallel.mesh import parameter_sharding
from helios_jax.typing import DType

MAX_CPU_PARAMETERS = 2 * 10**9
"""Largest transformer that runs on a CPU without ``allow_cpu``: the 14B one would take hours per chunk."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footprint:
    """The memory that a pipeline's weights take.

    Attributes:
        device: Name of the device, such as "NVIDIA H100 80GB HBM3" or "cpu".
        num_devices: Devices of the mesh; 1 without one.
        parameters: Parameters of the transformer.
        dtype: Dtype of transformer and text encoder.
        vae_dtype: Dtype of the VAE.
        bytes: Component -> bytes on one device.
        parked: Components that wait in host memory between uses; one of them at a time is on the device.
        limit: Bytes of memory of one device; ``None`` if the device does not report it.
        in_use: Bytes of it that are in use.
    """

    device: str
    num_devices: int
    parameters: int
    dtype: str
    vae_dtype: str
    bytes: dict[str, int]
    parked: tuple[str, ...] = ()
    limit: int | None = None
    in_use: int = 0

    @property
    def total(self) -> int:
        """The most bytes of weights that are on one device at a time."""
        parked = [self.bytes.get(name, 0) for name in self.parked]
        return sum(self.bytes.values()) - sum(parked) + max(parked, default=0)

    def __str__(self) -> str:
        devices = self.device if self.num_devices == 1 else f"{self.num_devices} x {self.device}"
        parts = ", ".join(
            f"{name} {bytes_in_words(size)}{' parked' if name in self.parked else ''}"
            for name, size in self.bytes.items()
        )
        limit = "" if self.limit is None else f" of {bytes_in_words(self.limit)}"
        dtypes = self.dtype if self.dtype == self.vae_dtype else f"{self.dtype}, VAE {self.vae_dtype}"
        each = " each" if self.num_devices > 1 else ""
        return f"{devices}, {dtypes}: weights {bytes_in_words(self.total)}{limit}{each} ({parts})"

    def check(self, *, allow_cpu: bool = False) -> None:
        """Raises ValueError when the weights cannot fit, or a large model would run on a CPU."""
        if self.device == "cpu" and self.parameters > MAX_CPU_PARAMETERS and not allow_cpu:
            raise ValueError(
                f"a transformer of {self.parameters / 1e9:.1f} billion parameters would run on a CPU, for hours per "
                "second of video: JAX found no GPU (see Install in the README), or JAX_PLATFORMS hides it. "
                "To do so nevertheless, pass allow_cpu=True"
            )
        if self.limit is not None and self.total > self.limit - self.in_use:
            taken = f", {bytes_in_words(self.in_use)} of them in use" if self.in_use > self.limit / 100 else ""
            advice = "" if self.dtype == "bfloat16" else "dtype='bfloat16', "
            raise ValueError(
                f"the weights take {bytes_in_words(self.total)} in {self.dtype}, and {self.device} has "
                f"{bytes_in_words(self.limit)}{taken}; use {advice}a device with more memory, or several "
                "(mesh=jax.make_mesh((n,), ('fsdp',)))"
            )


def footprint(
    settings: PipelineSettings,
    *,
    dtype: DType,
    vae_dtype: DType,
    mesh: jax.sharding.Mesh | None = None,
    parked: tuple[str, ...] = (),
) -> Footprint:
    """The memory of a checkpoint's weights on the default device, or on each device of ``mesh``; reads no weights."""
    sizes, parameters = {}, 0
    for name, component in COMPONENTS.items():
        config = getattr(settings, name)
        if config is None:
            continue
        abstract = component.abstract(config, vae_dtype if name == "vae" else dtype)
        variables = [variable for _, variable in nnx.to_flat_state(nnx.state(abstract, nnx.Param))]
        shards = [parameter_sharding(variable.shape, mesh).shard_shape(variable.shape) for variable in variables]
        sizes[name] = sum(
            math.prod(shape) * variable.dtype.itemsize for shape, variable in zip(shards, variables, strict=True)
        )
        if name == "transformer":
            parameters = sum(math.prod(variable.shape) for variable in variables)
    device = min(parameter_sharding((1,), mesh).device_set, key=lambda device: device.id)
    memory = device.memory_stats() or {}
    return Footprint(
        device=device.device_kind,
        num_devices=1 if mesh is None else mesh.size,
        parameters=parameters,
        dtype=str(jnp.dtype(dtype)),
        vae_dtype=str(jnp.dtype(vae_dtype)),
        bytes=sizes,
        parked=parked,
        limit=memory.get("bytes_limit"),
        in_use=memory.get("bytes_in_use", 0),
    )
