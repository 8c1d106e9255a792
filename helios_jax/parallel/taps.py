"""Taps: the residual stream after chosen layers of a loop.

Along with the stream x, the loop carries one slot for each tap and a spare one:

    forward    x_{l+1} = f(x_l, layer_l);   slots[s_l] = select(x_{l+1})                                  (1)
    backward   cotangent of x_{l+1}  +=  transpose of select (cotangent of slots[s_l])                    (2)

s_l is the number of layer l among the taps; layers without a tap write to the spare slot, which is never read. Both
equations are linear in x, so a gradient saves nothing for them. Outputs of a scan would not do: they exist for every
layer, and would double the memory of the streams that the gradient saves. Nor would a branch: on a GPU the host decides
which side of it runs, and would wait for every layer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.typing import Array, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taps:
    """Layers whose output is returned.

    Attributes:
        layers: Their numbers, from 0, increasing.
        select: What is returned of a stream; linear.
    """

    layers: tuple[int, ...]
    select: Callable[[Array], Array]

    def start(self, x: Array) -> Array:
        """Empty slots for a stream like ``x``."""
        selected = jax.eval_shape(self.select, x)
        return jnp.zeros((len(self.layers) + 1, *selected.shape), selected.dtype)

    def slots(self, count: int) -> Int[np.ndarray, " L"]:
        """s_l of every one of ``count`` layers."""
        slots = np.full(count, len(self.layers), np.int32)
        slots[list(self.layers)] = range(len(self.layers))
        return slots

    def write(self, stored: Array, x: Array, slot: Array) -> Array:
        """The slots after a layer, equation (1)."""
        return jax.lax.dynamic_update_index_in_dim(stored, self.select(x), slot, 0, allow_negative_indices=False)

    def read(self, stored: Array) -> Array:
        """The streams after the tapped layers, on a leading axis."""
        return stored[: len(self.layers)]

    def add_cotangent(self, cotangent: Array, of_streams: Array, slot: Array) -> Array:
        """The cotangent of a layer's output, equation (2).

        Args:
            cotangent: Its part from the layers that follow.
            of_streams: Cotangent of the result of ``read``.
            slot: s_l of the layer.
        """
        # The result of ``read`` has no spare slot: that of the last tap is fetched instead and replaced by zeros.
        last = len(self.layers) - 1
        own = jax.lax.dynamic_index_in_dim(of_streams, jnp.minimum(slot, last), keepdims=False)
        own = jnp.where(slot <= last, own, 0)
        return cotangent + jax.linear_transpose(self.select, cotangent)(own)[0]


def check_taps(taps: tuple[int, ...], count: int) -> None:
    """Raises ValueError unless ``taps`` are increasing numbers of ``count`` layers."""
    if list(taps) != sorted(set(taps)) or not set(taps) <= set(range(count)):
        raise ValueError(f"taps={taps} must be increasing numbers of layers, from 0 to {count - 1}")


def scan[Y](
    step: Callable[[Array, Any], tuple[Array, Y]], x: Array, layers: Any, taps: Taps | None
) -> tuple[Array, Array | None, Y]:
    """``jax.lax.scan`` over layers that also returns streams.

    Args:
        step: One layer: from stream and layer to stream and output.
        x: Stream before the first layer.
        layers: Parameters of all layers, with a leading axis.
        taps: Layers whose stream is returned; ``None``: none, and the loop carries the stream alone.

    Returns:
        The stream after the last layer, the streams after the tapped layers, and the outputs of ``step``.
    """
    if taps is None:
        x, outputs = jax.lax.scan(step, x, layers)
        return x, None, outputs

    def tapped(carry: tuple[Array, Array], one: tuple[Any, Array]) -> tuple[tuple[Array, Array], Y]:
        (x, stored), (layer, slot) = carry, one
        x, output = step(x, layer)
        return (x, taps.write(stored, x, slot)), output

    slots = jnp.asarray(taps.slots(len(jax.tree.leaves(layers)[0])))
    (x, stored), outputs = jax.lax.scan(tapped, (x, taps.start(x)), (layers, slots))
    return x, taps.read(stored), outputs
