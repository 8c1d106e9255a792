"""A loop over layers that keeps the tensors saved for its gradient in host memory.

    forward    x_{l+1} = f(x_l, layer_l);   x_l and the named values inside f are copied to the host
    backward   while the gradient of layer l is computed, the saved tensors of layer l - 1 are fetched

``jax.checkpoint`` can offload too, but fetches only on demand: at 384x640 each of the 14B model's 40 layers would wait
4 ms for 226 MB. Here they are fetched one layer ahead.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from helios_jax.parallel.taps import Taps, scan
from helios_jax.typing import Array

Arrays = list[Array]


def offloaded_scan(
    body: Callable[[Array, Any, Any], Array],
    x: Array,
    layers: Any,
    constants: Any,
    names: Sequence[str],
    taps: Taps | None = None,
) -> tuple[Array, Array | None]:
    """Iterates ``x = body(x, layer, constants)`` over ``layers``.

    Args:
        body: One layer. It must not close over traced arrays, which would get no gradient: pass them as ``constants``.
        x: Input of the first layer.
        layers: Parameters of all layers, with a leading axis.
        constants: Arrays that all layers share.
        names: Values inside ``body`` (``jax.ad_checkpoint.checkpoint_name``) that are saved along with x; all others
            are recomputed.
        taps: Layers whose output is returned too.

    Returns:
        Output of the last layer, and the outputs of the tapped layers on a new leading axis; ``None`` without taps.
    """
    layer_leaves, layer_structure = jax.tree.flatten(layers)
    constant_leaves, constant_structure = jax.tree.flatten(constants)
    policy = jax.checkpoint_policies.save_only_these_names(*names)

    def flat(x: Array, layer: Arrays, constants: Arrays) -> Array:
        return body(x, layer_structure.unflatten(layer), constant_structure.unflatten(constants))

    return _scan(jax.checkpoint(flat, policy=policy, prevent_cse=False), taps, x, layer_leaves, constant_leaves)


Flat = Callable[[Array, Arrays, Arrays], Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(body: Flat, taps: Taps | None, x: Array, layers: Arrays, constants: Arrays) -> tuple[Array, Array | None]:
    x, streams, _ = scan(lambda x, layer: (body(x, layer, constants), None), x, layers, taps)
    return x, streams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gradient:
    """The function that ``jax.vjp`` returned for a layer, without the arrays that the caller already has.

    Attributes:
        kept: The remaining residual arrays.
        sources: For each array of the function, its index among the caller's arrays, or None for the next of ``kept``.
        structure: The function without its arrays.
    """

    kept: Arrays
    sources: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})
    structure: Any = dataclasses.field(metadata={"static": True})

    @classmethod
    def without(cls, at_hand: Arrays, function: Any) -> "_Gradient":
        """Takes ``function`` apart; arrays are recognised by identity."""
        # jax.vjp keeps weights and constants as residuals too. Copying them would multiply the traffic to the
        # host, and every layer would hold its own copy of the constants.
        places = {id(array): place for place, array in enumerate(at_hand)}
        arrays, structure = jax.tree.flatten(function)
        sources = tuple(places.get(id(array)) for array in arrays)
        kept = [array for array, source in zip(arrays, sources, strict=True) if source is None]
        return cls(kept=kept, sources=sources, structure=structure)

    def function(self, at_hand: Arrays) -> Callable[[Array], tuple[Array, Arrays, Arrays]]:
        """Rebuilds the function around the same arrays."""
        kept = iter(self.kept)
        return self.structure.unflatten(next(kept) if place is None else at_hand[place] for place in self.sources)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Saved:
    """Residuals of the whole loop: its inputs, and the gradient functions of all layers, stacked in host memory."""

    layers: Arrays
    constants: Arrays
    gradients: _Gradient
    trained: tuple[tuple[bool, ...], tuple[bool, ...]] = dataclasses.field(metadata={"static": True})


def _forward(
    body: Flat, taps: Taps | None, x: Any, layers: list[Any], constants: list[Any]
) -> tuple[tuple[Array, Array | None], _Saved]:
    # With symbolic_zeros arrays come with a flag that says whether they are differentiated. Frozen weights are not:
    # their gradient would take as much memory as they do.
    trained = tuple(leaf.perturbed for leaf in layers), tuple(leaf.perturbed for leaf in constants)
    x, layers, constants = jax.tree.map(lambda leaf: leaf.value, (x, layers, constants), is_leaf=_is_primal)

    def step(x: Array, layer: Arrays) -> tuple[Array, _Gradient]:
        def run(x: Array, trained_layer: Arrays, trained_constants: Arrays) -> Array:
            return body(x, _put(layer, trained[0], trained_layer), _put(constants, trained[1], trained_constants))

        x, function = jax.vjp(run, x, _take(layer, trained[0]), _take(constants, trained[1]))
        gradient = _Gradient.without([*layer, *constants], function)
        # As outputs of the scan, tensors are copied to their place in a host stack while the next layer computes.
        return x, jax.device_put(gradient, jax.memory.Space.Host)

    x, streams, gradients = scan(step, x, layers, taps)
    return (x, streams), _Saved(layers=layers, constants=constants, gradients=gradients, trained=trained)


def _backward(
    body: Flat, taps: Taps | None, saved: _Saved, cotangents: tuple[Any, Any]
) -> tuple[Array, list[Array | None], list[Array | None]]:
    del body
    cotangent, of_streams = cotangents
    result: Any = cotangent
    if isinstance(cotangent, SymbolicZero):
        cotangent = jnp.zeros(result.shape, result.dtype)
    count = len(saved.layers[0])
    tapped = taps is not None and not isinstance(of_streams, SymbolicZero)
    slots = jnp.asarray(taps.slots(count)) if tapped else None

    def fetch(index: Array | int) -> _Gradient:
        return jax.device_put(_at(saved.gradients, index), jax.memory.Space.Device)

    # A while loop with an explicit counter, not a scan: XLA uses the copy engine only for slices whose index is a
    # function of the loop counter. Any other slice is copied by a kernel, which takes multiprocessors from the blocks.
    def step(carry: tuple[Array, Array, Arrays, Arrays, _Gradient]) -> Any:
        turn, cotangent, of_layers, of_constants, gradient = carry
        index = count - 1 - turn
        # Fetched one iteration ahead. The last iteration reads index -1 as 0 and drops the result: no condition needed.
        ahead = fetch(index - 1)
        layer = _at(saved.layers, index)
        if tapped:
            # The streams themselves need no residual: their cotangents are added here, each at its layer.
            cotangent = taps.add_cotangent(cotangent, of_streams, _at(slots, index))
        cotangent, *more = gradient.function([*layer, *saved.constants])(cotangent)
        of_layers = [
            jax.lax.dynamic_update_index_in_dim(stack, one, index, 0, allow_negative_indices=False)
            for stack, one in zip(of_layers, more[0], strict=True)
        ]
        # Gradients of a layer's weights go to their place in a stack; gradients of constants are summed over layers.
        of_constants = jax.tree.map(jnp.add, of_constants, more[1])
        return turn + 1, cotangent, of_layers, of_constants, ahead

    trained = [_take(*pair) for pair in zip((saved.layers, saved.constants), saved.trained, strict=True)]
    start = jnp.int32(0), cotangent, *jax.tree.map(jnp.zeros_like, trained), fetch(count - 1)
    _, cotangent, of_layers, of_constants, _ = jax.lax.while_loop(lambda carry: carry[0] < count, step, start)
    nothing = [[None] * len(flags) for flags in saved.trained]
    return cotangent, _put(nothing[0], saved.trained[0], of_layers), _put(nothing[1], saved.trained[1], of_constants)


_scan.defvjp(_forward, _backward, symbolic_zeros=True)


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def _at(stacks: Any, index: Array | int) -> Any:
    """One element of stacked arrays."""
    # Without the wrap-around of negative indices: its select would hide from XLA that the index follows the counter.
    pick = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False, allow_negative_indices=False)
    return jax.tree.map(pick, stacks)


def _take(values: list[Any], chosen: Sequence[bool]) -> list[Any]:
    return [value for value, is_chosen in zip(values, chosen, strict=True) if is_chosen]


def _put(values: list[Any], chosen: Sequence[bool], new: list[Any]) -> list[Any]:
    """``values`` with the chosen ones replaced."""
    remaining = iter(new)
    return [next(remaining) if is_chosen else value for value, is_chosen in zip(values, chosen, strict=True)]
