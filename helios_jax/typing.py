"""Array types used in every public signature, so that shapes read the same everywhere.

``LETTERS`` are the axes that have a letter. A digit after a letter is another size of the same kind ("S S2"). All other
axes are named by a word in lower case ("steps scalars"). Arrays are channels-last.

The annotations are documentation in production; the test suite turns them into checks with
jaxtyping's import hook and beartype (``tests/conftest.py``), and ``tests/letters_test.py`` looks for other letters.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Key, UInt8

Array = jax.Array
"""An array on a device, or a tracer."""

AnyArray = jax.Array | np.ndarray
"""An array on a device or in host memory."""

Path = str | PathLike[str]
DType = Any
"""Whatever ``jnp.dtype`` accepts: "bfloat16", ``jnp.float32``, ..."""

LETTERS = {
    "B": "batch",
    "T": "latent frames",
    "H": "rows, of latents or of pixels",
    "W": "columns, of latents or of pixels",
    "h": "rows of latents, next to H rows of pixels",
    "w": "columns of latents, next to W columns of pixels",
    "F": "pixel frames",
    "P": "channels of pixels; in kernels also positions: of modulation vectors or of a frame's pixels",
    "C": "channels of latents or features",
    "S": "tokens",
    "N": "heads",
    "K": "head dimension",
    "D": "model dimension",
    "E": "dimension of text or timestep embeddings",
    "L": "layers",
    "R": "sets of modulation vectors: of history and of current tokens, or one for both",
    "V": "entries of an embedding table",
}
"""What the letters in array annotations mean."""

__all__ = [
    "LETTERS",
    "AnyArray",
    "Array",
    "Bool",
    "DType",
    "Float",
    "Int",
    "Key",
    "Path",
    "Sequence",
    "UInt8",
]
