"""Checks that values are finite: on the device, for each part of a chunk; the results are fetched with its frames.

A check is one reduction over a few hundred thousand numbers and a copy of one bool, and nothing waits for it. The error
names the first part that is not finite in the order of the computation, because later parts depend on it.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from helios_jax.typing import Array, Bool

TEXT = "text"
CONTEXT = "context"
FRAMES = "frames"

_CHECK = "check the checkpoint with 'helios-convert inspect'"
_VAE = f"the VAE's weights hold NaN or infinity, or its values overflow; {_CHECK}, or try vae_dtype float32"
_ADVICE = {
    TEXT: "the text embeddings are not finite: the text encoder's weights hold NaN or infinity, or its values "
    f"overflow; {_CHECK}, or try dtype float32",
    CONTEXT: f"the latents of the image or clip are not finite: {_VAE}",
    FRAMES: f"the frames are not finite, though the latents are: {_VAE}",
}
_LEVEL_ADVICE = (
    "the latents are not finite: the transformer's weights hold NaN or infinity, or its values overflow; drop any LoRA "
    f"or lower its scale, {_CHECK}, or try dtype float32"
)

Verdict = tuple[str | int, Bool[Array, ""]]
"""A part of a chunk, ``TEXT``, ``CONTEXT``, the number of a level or ``FRAMES``, and whether it is finite."""


@jax.jit
def all_finite(values: Any) -> Bool[Array, ""]:
    """Whether there is neither NaN nor infinity in the arrays of a tree."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(values)]).all()


def require_finite(chunk: int, verdicts: Iterable[tuple[str | int, bool]]) -> None:
    """Raises FloatingPointError, naming the chunk and the part, if a part of a chunk is not finite."""
    for part, finite in verdicts:
        if not finite and isinstance(part, int):
            raise FloatingPointError(f"chunk {chunk}, level {part}: {_LEVEL_ADVICE}")
        if not finite:
            raise FloatingPointError(f"chunk {chunk}: {_ADVICE[str(part)]}")
