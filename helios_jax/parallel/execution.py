"""Ways to run a stack of blocks, independent of what a block is.

    Resident    every weight on the device, nothing kept for a gradient: sampling
    Scanned     one ``lax.scan`` that saves for the gradient what ``remat`` says: training

An ``Execution`` is static under ``jax.jit``. The network passes its blocks as one ``Layer``; neither the network nor
a block depends on the form that runs it, so a new form only needs a new implementation of ``Layers``.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from helios_jax.parallel.memory import Remat, scan_layers
from helios_jax.parallel.taps import Taps, check_taps
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

    def run[R](
        self, layer: Layer[R], x: Array, stacks: Any, constants: Any, taps: tuple[int, ...] = ()
    ) -> tuple[R, Array | None]:
        """Runs all layers.

        Args:
            layer: One layer.
            x: The stream before the first layer.
            stacks: What differs between layers, with a leading layer axis.
            constants: Arrays that all layers share.
            taps: Numbers of the layers whose output is returned too.

        Returns:
            The residual stream after the last layer, and the streams after the layers of ``taps`` with nothing pending,
            on a new leading axis (``None`` without taps). All hold the tokens that are read after the last layer, and
            padding.

        Raises:
            ValueError: ``taps`` are not increasing numbers of layers.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resident:
    """An index loop over stacked weights that are all on the device; for sampling.

    The residual addition is deferred from each layer to the norm that opens the next one, which reads the stream
    anyway.
    """

    def run[R](
        self, layer: Layer[R], x: Array, stacks: Any, constants: Any, taps: tuple[int, ...] = ()
    ) -> tuple[R, Array | None]:
        """Runs all layers but the last in a loop, and the last one separately; see ``Layers``."""

        # The last layer is handled separately, because history tokens need only their keys and values there. A scan
        # over the other layers would need a stack without the last one: a copy of nearly all weights. An index into
        # the whole stack is a view that XLA fuses into the kernels' reads.
        def run_layer(index: Int[Array, ""] | int, residual: R, *, is_last: bool = False) -> R:
            return layer(residual, jax.tree.map(lambda stack: stack[index], stacks), constants, is_last=is_last)

        last = len(jax.tree.leaves(stacks)[0]) - 1
        check_taps(taps, last + 1)
        # A loop's carry must keep its structure, so the first layer starts with a pending zero.
        residual, start, streams = layer.pending(x, constants), 0, []
        # Every tap ends a loop. In a loop that carries the streams, every layer would have to perform the addition.
        for tap in taps:
            if tap < last:
                residual = jax.lax.fori_loop(start, tap + 1, run_layer, residual)
                streams.append(layer.last_tokens(layer.total(residual)))
                start = tap + 1
        residual = run_layer(last, jax.lax.fori_loop(start, last, run_layer, residual), is_last=True)
        if last in taps:
            streams.append(layer.total(residual))
        return residual, jnp.stack(streams) if streams else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scanned:
    """A scan over all layers; for training.

    Attributes:
        remat: What the gradient recomputes.
    """

    remat: Remat = "none"

    def run[R](
        self, layer: Layer[R], x: Array, stacks: Any, constants: Any, taps: tuple[int, ...] = ()
    ) -> tuple[R, Array | None]:
        """Runs all layers in one scan; see ``Layers``.

        Raises:
            ValueError: Unknown ``remat``, or ``taps`` are not increasing numbers of layers.
        """
        check_taps(taps, len(jax.tree.leaves(stacks)[0]))

        # The addition is performed between layers: the stream of every layer is saved for the gradient, and one array
        # takes half the memory of two. The last layer runs like the others, since a scan has one body.
        def body(x: Array, one: Any, constants: Any) -> Array:
            return layer.total(layer(layer.settled(x), one, constants))

        tapped = Taps(layers=taps, select=layer.last_tokens) if taps else None
        x, streams = scan_layers(body, x, stacks, constants, self.remat, tapped)
        return layer.settled(layer.last_tokens(x)), streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How the blocks of a network call are run; static under ``jax.jit``.

    Attributes:
        layers: How the stack is walked: ``Resident()`` for sampling, ``Scanned(remat=...)`` for training.
    """

    layers: Layers = dataclasses.field(default_factory=Resident)


SAMPLING = Execution()
"""The default, for sampling."""
