"""From the latents of a chunk to pixels."""

import functools

import jax
import jax.numpy as jnp

from helios_jax.models.network import Network
from helios_jax.models.vae import WanVae, denormalize, to_uint8
from helios_jax.typing import Array, Bool, Float, UInt8


@functools.partial(jax.jit, static_argnames="slice_frames")
def decode_and_check(
    vae: Network[WanVae], latents: Float[Array, "B T h w C"], *, slice_frames: int | None = None
) -> tuple[UInt8[Array, "B F H W 3"], Bool[Array, ""]]:
    """Pixels of one chunk, and whether the decoder's values, which pixels hide, are finite."""
    # Every chunk is decoded from an empty causal cache: the model was trained on chunks that were encoded one by one.
    values = vae.module.decode_unclipped(denormalize(vae.config, latents), slice_frames)
    return to_uint8(jnp.clip(values, -1.0, 1.0)), jnp.isfinite(values).all()


def decode_chunk(
    vae: Network[WanVae], latents: Float[Array, "B T h w C"], *, slice_frames: int | None = None
) -> UInt8[Array, "B F H W 3"]:
    """Pixels of one chunk."""
    return decode_and_check(vae, latents, slice_frames=slice_frames)[0]
