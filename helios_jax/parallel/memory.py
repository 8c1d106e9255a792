"""What is kept for the gradient, where, and what is computed again.

One network call of the 14B model at 384x640 makes 113 MB per activation of width D and layer, and some 30 of them in a
block. The inputs of all blocks take 4.5 GB, the outputs of self-attention as much.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax

from helios_jax.parallel.offload import offloaded_scan
from helios_jax.typing import Array

Body = Callable[[Array, Any, Any], Array]

Remat = Literal["none", "attention", "full", "offload"]
"""What the gradient computes again: nothing; all of a block but its self-attention; all of a block from its input; as
for "attention", but what is kept waits in the memory of the host, to and from which it travels while blocks compute."""

ATTENTION = "self_attention"
"""Name of the results of self-attention that its gradient needs."""


def compiler_options(remat: Remat) -> dict[str, Any]:
    """Options of ``jax.jit`` for a function whose gradient keeps what ``remat`` says.

    XLA joins kernels to graphs that are launched at once. Copies inside a graph wait for the kernels before them, and
    those behind for the copies, so that none would travel while blocks compute: "offload" does without graphs.
    """
    return {"xla_gpu_graph_min_graph_size": 2**30} if remat == "offload" else {}


def scan_layers(body: Body, x: Array, layers: Any, constants: Any, remat: Remat) -> Array:
    """The last x of ``x = body(x, layer, constants)`` over ``layers``, keeping for the gradient what ``remat`` says.

    Args:
        body: One layer. For "offload" it must not close over traced arrays.
        x: Array in front of the first layer.
        layers: Parameters of all layers, with a leading axis.
        constants: Arrays that all layers share.
        remat: What is computed again.

    Raises:
        ValueError: Unknown ``remat``.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat={remat!r} given; expected one of {', '.join(map(repr, get_args(Remat)))}")
    if remat == "offload":
        return offloaded_scan(body, x, layers, constants, names=[ATTENTION])
    if remat != "none":
        names = [ATTENTION] if remat == "attention" else []
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(lambda x, layer: (body(x, layer, constants), None), x, layers)[0]
