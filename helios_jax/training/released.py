"""The tensors of a trained network as they are released, each computed when it is asked for.

    released = cast(W + c A B)        W: the frozen kernel, A, B: its adapter, sum in fp32        (1)

Training keeps frozen weights in the precision of computation. If they were cast from fp32 to bfloat16 when they were
loaded, W in (1) can be read again from the files that they came from, tensor by tensor, so that the release does not
inherit that rounding.

Where several processes share the arrays, all of them ask for the same tensors in the same order.
"""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helios_jax.checkpoints.components import find_component
from helios_jax.checkpoints.diffusers import StoredTensors
from helios_jax.checkpoints.key_tables import ParamPath, published_entries
from helios_jax.models.lora import adapted_layers, merged_kernel, strip_lora
from helios_jax.models.network import ConfiguredModule
from helios_jax.parallel.mesh import readable, replicated_like
from helios_jax.typing import AnyArray, Array, Bool, DType, Float


class Released:
    """A trained network in the form of a published checkpoint: adapters merged, published dtypes.

    Args:
        name: Its name among the networks: "transformer", "vae" or "text_encoder".
        network: The network, with arrays on devices or on the host; it is not changed.
        dtype: Precision of the release; parameters that are published only in fp32 stay fp32.
        config: Configuration with the same sizes; ``None``: that of ``network``.
        source: The files that the frozen weights were loaded from, if they are more precise; ``None``: use the frozen
            weights as they are.

    Attributes:
        entries: The published tensors by name, in the order of the files.
        dtypes: Dtype of each parameter.
        adapted: The layers with an adapter by path.
    """

    def __init__(
        self,
        name: str,
        network: ConfiguredModule,
        dtype: DType,
        config: Any = None,
        source: StoredTensors | None = None,
    ) -> None:
        component = find_component(name)
        abstract = component.abstract(config or network.config, dtype)
        self.name = name
        self.entries = published_entries(abstract, component.keys)
        state = nnx.to_flat_state(nnx.state(abstract, nnx.Param))
        self.dtypes = {path: np.dtype(variable.dtype) for path, variable in state}
        self.adapted = adapted_layers(network)
        self._source = source
        self._arrays = dict(nnx.to_flat_state(nnx.state(strip_lora(network), nnx.Param)))
        # Tensors that lie side by side in one layer of a parameter.
        self._side_by_side: dict[tuple[ParamPath, int | None], list[str]] = collections.defaultdict(list)
        for published, entry in self.entries.items():
            self._side_by_side[entry.path, entry.layer].append(published)

    def tensor(self, published: str) -> jax.Array:
        """A published tensor in our layout, gathered on the devices.

        Raises:
            FloatingPointError: A value is not finite.
            ValueError: The source holds other weights than the network.
        """
        entry = self.entries[published]
        if self._is_adapted(entry.path):
            part = self._merged(entry.path, entry.layer)
            part = part if entry.columns is None else part[..., entry.columns]
        else:
            part = self._frozen(published)
        dtype = self.dtypes[entry.path]
        part, finite = readable(_cast(part, dtype))
        if not finite:
            raise FloatingPointError(f"{self.name}: {published} is not finite in {dtype}; it is not written")
        return part

    def parameter(self, path: ParamPath, layer: int | None = None) -> jax.Array:
        """A parameter, or one layer of it; see ``tensor``."""
        parts = [self.tensor(published) for published in self._side_by_side[path, layer]]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    def unmerged(self, path: ParamPath, layer: int | None = None) -> Float[AnyArray, "*shape"]:
        """W of equation (1): a kernel, or one layer of it, without its adapter, as precise as it is known."""
        names = self._side_by_side[path, layer]
        if self._source is None:
            array = self._arrays[path][...]
            return array if layer is None else array[layer]
        parts = [self._frozen(published) for published in names]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    def _merged(self, path: ParamPath, layer: int | None) -> jax.Array:
        owner = self.adapted["/".join(map(str, path[:-1]))]
        kernel = jnp.asarray(self.unmerged(path, layer))
        return merged_kernel(owner, layer, kernel=kernel, dtype=self.dtypes[path])

    def _is_adapted(self, path: ParamPath) -> bool:
        return path[-1] == "kernel" and "/".join(map(str, path[:-1])) in self.adapted

    def _frozen(self, published: str) -> Float[AnyArray, "*shape"]:
        """A tensor without adapters, from the source if that is more precise."""
        entry = self.entries[published]
        array = self._arrays[entry.path][...]
        own = entry.of(array)
        # A parameter that was trained is as precise as the source, and not equal to it.
        if self._source is None or self._source.dtypes[published].itemsize <= own.dtype.itemsize:
            return own
        stored = np.asarray(entry.layout.to_ours(self._source.read(published)))
        finer = jax.device_put(stored, replicated_like(array)) if isinstance(array, jax.Array) else jnp.asarray(stored)
        if not readable(_rounds_to(finer, own)):
            raise ValueError(
                f"{self.name}: {published} of the source, rounded to {own.dtype}, is not the frozen weight of this "
                "run: the source must be the checkpoint that the run started from"
            )
        return finer


@functools.partial(jax.jit, static_argnums=1)
def _cast(part: Float[AnyArray, "*shape"], dtype: DType) -> tuple[Float[Array, "*shape"], Bool[Array, ""]]:
    part = jnp.asarray(part).astype(dtype)
    return part, jnp.isfinite(part).all()


@jax.jit
def _rounds_to(finer: Float[AnyArray, "*shape"], own: Float[AnyArray, "*shape"]) -> Bool[Array, ""]:
    return (jnp.asarray(finer).astype(own.dtype) == own).all()
