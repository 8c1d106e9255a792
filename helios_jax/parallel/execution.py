"""Ways to run a stack of blocks, independent of what a block is.

    Resident    every weight on the device, nothing kept for a gradient: sampling
    Scanned     one ``lax.scan`` that saves for the gradient what ``remat`` says: training

An ``Execution`` is static under ``jax.jit``. The network passes its blocks as one ``Layer``; neither the network nor
a block depends on the form that runs it, so a new form only needs a new implementation of ``Layers``.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax

from helios_jax.parallel.memory import Remat, scan_layers
from helios_jax.typing import Array, Int


@runtime_checkable
class Layer[R](Protocol):
    """One layer of a stack, as ``Layers`` runs it; holds no arrays.

    R is the residual stream between layers: a pytree in which the last addition may be pending.
    """

    def __call__(self, residual: R, layer: Any, constants: Any, *, is_last: bool = False) -> R:
        """The stream after a layer, with an addition pending.

        Args:
            residual: The stream before it.
            layer: What differs between layers, without the leading axis.
            constants: Arrays that all layers share.
            is_last: Return only the tokens that are read after the last layer.
        """
        ...

    def pending(self, x: Array, constants: Any) -> R:
        """``x`` with an addition of zero pending: the structure that a call returns."""
        ...

    def settled(self, x: Array) -> R:
        """``x`` with nothing pending."""
        ...

    def total(self, residual: R) -> Array:
        """The stream as one array, after the pending addition."""
        ...

    def last_tokens(self, x: Array) -> Array:
        """The tokens of ``x`` that are read after the last layer."""
        ...


@runtime_checkable
class Layers(Protocol):
    """A way to run all layers of a stack in order. Implementations are frozen dataclasses and therefore static."""

    def run[R](self, layer: Layer[R], x: Array, stacks: Any, constants: Any) -> R:
        """Returns the residual stream after the last layer, for the tokens that are read there and for padding.

        Args:
            layer: One layer.
            x: The stream before the first layer.
            stacks: What differs between layers, with a leading layer axis.
            constants: Arrays that all layers share.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resident:
    """An index loop over stacked weights that are all on the device; for sampling.

    The residual addition is deferred from each layer to the norm that opens the next one, which reads the stream
    anyway.
    """

    def run[R](self, layer: Layer[R], x: Array, stacks: Any, constants: Any) -> R:
        """Runs all layers but the last in a loop, and the last one separately; see ``Layers``."""

        # The last layer is handled separately, because history tokens need only their keys and values there. A scan
        # over the other layers would need a stack without the last one: a copy of nearly all weights. An index into
        # the whole stack is a view that XLA fuses into the kernels' reads.
        def run_layer(index: Int[Array, ""] | int, residual: R, *, is_last: bool = False) -> R:
            return layer(residual, jax.tree.map(lambda stack: stack[index], stacks), constants, is_last=is_last)

        last = len(jax.tree.leaves(stacks)[0]) - 1
        # A loop's carry must keep its structure, so the first layer starts with a pending zero.
        before_last = jax.lax.fori_loop(0, last, run_layer, layer.pending(x, constants))
        return run_layer(last, before_last, is_last=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scanned:
    """A scan over all layers; for training.

    Attributes:
        remat: What the gradient recomputes.
    """

    remat: Remat = "none"

    def run[R](self, layer: Layer[R], x: Array, stacks: Any, constants: Any) -> R:
        """Runs all layers in one scan; see ``Layers``.

        Raises:
            ValueError: Unknown ``remat``.
        """

        # The addition is performed between layers: the stream of every layer is saved for the gradient, and one array
        # takes half the memory of two. The last layer runs like the others, since a scan has one body.
        def body(x: Array, one: Any, constants: Any) -> Array:
            return layer.total(layer(layer.settled(x), one, constants))

        return layer.settled(layer.last_tokens(scan_layers(body, x, stacks, constants, self.remat)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How the blocks of a network call are run; static under ``jax.jit``.

    Attributes:
        layers: How the stack is walked: ``Resident()`` for sampling, ``Scanned(remat=...)`` for training.
    """

    layers: Layers = dataclasses.field(default_factory=Resident)


SAMPLING = Execution()
"""The default, for sampling."""
