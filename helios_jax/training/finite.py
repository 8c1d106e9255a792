"""Checks, on the devices, that numbers are finite."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from helios_jax.parallel.host_memory import compute_each
from helios_jax.typing import Array


def by_path(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by path, such as "networks/trainable/out/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): array
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    }


def not_finite(arrays: Mapping[str, Any]) -> str:
    """Names the arrays that are not finite: "a/kernel and 2 others"; empty if all are.

    Args:
        arrays: Arrays on the devices or in pinned host memory, by path. Every process that shares them must call.
    """
    found = jax.device_get(compute_each(_all_finite, arrays))
    bad = [path for path, finite in found.items() if not finite]
    return bad[0] + (f" and {len(bad) - 1} others" if len(bad) > 1 else "") if bad else ""


@jax.jit
def _all_finite(array: Array) -> Array:
    return jnp.isfinite(array).all() if jnp.issubdtype(array.dtype, jnp.inexact) else jnp.bool(True)
