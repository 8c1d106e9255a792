"""What is saved for the gradient, where it is kept, and what is recomputed.

In one network call of the 14B model at 384x640 an activation of model width takes 113 MB per layer, and a block has
about 30 of them. The inputs of all blocks together take 4.5 GB, and so do the outputs of self-attention.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax

from helios_jax.parallel.offload import offloaded_scan
from helios_jax.parallel.taps import Taps, scan
from helios_jax.typing import Array

Body = Callable[[Array, Any, Any], Array]

Remat = Literal["none", "attention", "full", "offload"]
"""What the gradient recomputes.

"none"         nothing: all activations are saved
"attention"    all of a block except its self-attention, whose results are saved next to the block's input
"full"         all of a block: only its input is saved
"offload"      as "attention", but saved tensors are kept in host memory and transferred while blocks compute
"""

ATTENTION = "self_attention"
"""Name of the results of self-attention that its gradient needs."""


def compiler_options(remat: Remat) -> dict[str, Any]:
    """Options of ``jax.jit`` for a function that is differentiated under ``remat``."""
    # XLA groups kernels into CUDA graphs. Inside a graph a copy waits for the kernels before it, and the kernels after
    # it wait for the copy, so nothing would be transferred while blocks compute. A minimum size that no graph
    # reaches turns graphs off.
    return {"xla_gpu_graph_min_graph_size": 2**30} if remat == "offload" else {}


def scan_layers(
    body: Body, x: Array, layers: Any, constants: Any, remat: Remat, taps: Taps | None = None
) -> tuple[Array, Array | None]:
    """Iterates ``x = body(x, layer, constants)`` over ``layers`` and saves for the gradient what ``remat`` says.

    Args:
        body: One layer. For "offload" it must not close over traced arrays.
        x: Input of the first layer.
        layers: Parameters of all layers, with a leading axis.
        constants: Arrays that all layers share.
        remat: What is recomputed.
        taps: Layers whose output is returned too. Nothing more is saved for their gradients.

    Returns:
        Output of the last layer, and the outputs of the tapped layers on a new leading axis; ``None`` without taps.

    Raises:
        ValueError: Unknown ``remat``.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat={remat!r} given; expected one of {', '.join(map(repr, get_args(Remat)))}")
    if remat == "offload":
        return offloaded_scan(body, x, layers, constants, names=[ATTENTION], taps=taps)
    if remat != "none":
        names = [ATTENTION] if remat == "attention" else []
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        # prevent_cse guards against XLA merging recomputed values with the saved originals; a scan already keeps the
        # two apart, in different loops, and the guard's barriers would only cost speed.
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    x, streams, _ = scan(lambda x, layer: (body(x, layer, constants), None), x, layers, taps)
    return x, streams
