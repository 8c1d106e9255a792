"""Array types used in every public signature, so that shapes read the same everywhere.

Letters (fixed): B batch, T latent frames, H W latent grid, C channels, S tokens, N heads, K head
dimension, D model dimension, L layers, F pixel frames. Arrays are channels-last.

The annotations are documentation in production; the test suite turns them into checks with
jaxtyping's import hook and beartype (``tests/conftest.py``).
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

__all__ = [
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
