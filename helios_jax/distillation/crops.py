"""Crops of clips at random places, and their transpose."""

import jax
import jax.numpy as jnp

from helios_jax.typing import Array, Float, Int, Sequence


def crop(x: Float[Array, "B T H W C"], corner: Float[Array, "B 2"], size: Sequence[int]) -> Float[Array, "B T h w C"]:
    """Cuts ``size`` rows and columns out of every clip; each place is equally likely if ``corner`` is U(0,1)."""
    frames, channels = x.shape[1], x.shape[4]

    def cut(x: Float[Array, "T H W C"], start: Int[Array, "2"]) -> Float[Array, "T h w C"]:
        return jax.lax.dynamic_slice(x, (0, *start, 0), (frames, *size, channels))

    return jax.vmap(cut)(x, _places(corner, x.shape[2:4], size))


def uncrop(
    part: Float[Array, "B T h w C"], corner: Float[Array, "B 2"], size: Sequence[int]
) -> Float[Array, "B T H W C"]:
    """Puts crops back to where ``crop`` took them from, in clips of ``size`` rows and columns of zeros."""
    frames, *own, channels = part.shape[1:]

    def put(part: Float[Array, "T h w C"], start: Int[Array, "2"]) -> Float[Array, "T H W C"]:
        return jax.lax.dynamic_update_slice(jnp.zeros((frames, *size, channels), part.dtype), part, (0, *start, 0))

    return jax.vmap(put)(part, _places(corner, size, own))


def _places(corner: Float[Array, "B 2"], size: Sequence[int], part: Sequence[int]) -> Int[Array, "B 2"]:
    """Row and column at which a crop of ``part`` rows and columns begins in clips of ``size``."""
    last = jnp.asarray(size) - jnp.asarray(part)
    # The product can be rounded up to last + 1.
    return jnp.minimum((corner * (last + 1)).astype(jnp.int32), last)
