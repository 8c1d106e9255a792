"""What is kept in device memory for the gradient, and what is computed again.

One network call of the 14B model at 384x640 makes 113 MB per activation of width D and layer, and some 30 of them in a
block. Storing the inputs of blocks alone takes 9 GB.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "attention", "full"]
"""What the gradient computes again: nothing; all of a block but its self-attention; all of a block from its input."""

ATTENTION = "attention"
"""Name under which outputs of self-attention can be stored."""


def storable(x: Any) -> Any:
    """Marks arrays as outputs of self-attention."""
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, ATTENTION), x)


def checkpointed(body: Callable, remat: Remat) -> Callable:
    """The body of a scan over layers, storing what ``remat`` leaves.

    Raises:
        ValueError: Unknown ``remat``.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat={remat!r} given; expected one of {', '.join(map(repr, get_args(Remat)))}")
    if remat == "none":
        return body
    names = [ATTENTION] if remat == "attention" else []
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    return jax.checkpoint(body, policy=policy, prevent_cse=False)
