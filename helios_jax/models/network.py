"""A network as the pure functions of this library take it: static structure beside parameters."""

import dataclasses
import functools

import jax
from flax import nnx


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["graph"])
@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A split ``nnx.Module``; a pytree whose leaves are its parameters.

    Two networks of the same configuration share compiled programs, since ``graph`` compares by structure.

    Attributes:
        graph: Static half; hashable.
        params: The parameters.
    """

    graph: nnx.GraphDef
    params: nnx.State

    @classmethod
    def of(cls, module: nnx.Module) -> "Network":
        """Splits a module."""
        graph, params = nnx.split(module)
        return cls(graph=graph, params=params)

    @property
    def module(self) -> nnx.Module:
        """The module again, around the same arrays."""
        return nnx.merge(self.graph, self.params)
