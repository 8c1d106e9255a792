"""A network as an argument for pure functions: static graph definition plus parameter pytree."""

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx


class ConfiguredModule(nnx.Module):
    """Base class of the transformer, the VAE and the text encoder.

    Attributes:
        config: The configuration it was built from.
        dtype: The compute dtype.
    """

    config: Any
    dtype: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["graph"])
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Network[M: ConfiguredModule]:
    """A split network; a pytree whose leaves are its parameters.

    Two networks of the same configuration share compiled programs, since ``graph`` compares by structure.

    Attributes:
        graph: Static half; hashable.
        params: The parameters.
    """

    graph: nnx.GraphDef[M]
    params: nnx.State

    @classmethod
    def of(cls, module: M) -> "Network[M]":
        """Splits a module."""
        graph, params = nnx.split(module)
        return cls(graph=graph, params=params)

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        # JAX also builds such trees with leaves that are not arrays, such as shardings.
        count = sum(getattr(leaf, "size", 0) for leaf in leaves)
        return f"Network({type(self.module).__name__}, {count_in_words(count)} parameters)"

    @functools.cached_property
    def config(self) -> Any:
        """The configuration; cached, because merging the module takes milliseconds."""
        return self.module.config

    @functools.cached_property
    def dtype(self) -> Any:
        """The compute dtype, cached for the same reason."""
        return self.module.dtype

    @property
    def module(self) -> M:
        """The merged module, which shares the arrays."""
        return nnx.merge(self.graph, self.params)


def count_in_words(count: float) -> str:
    """A count with three digits: 14.3B, 127M, 65.1k, 12."""
    for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{float(f'{count / unit:.3g}'):g}{suffix}"
    return f"{count:g}"
