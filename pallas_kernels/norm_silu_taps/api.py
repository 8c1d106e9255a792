"""What a causal convolution over three frames reads, in one pass over its input.

    y_t = SiLU( x_t / max(|x_t|, 1e-12) sqrt(C) gamma )           over the channels of a pixel      (1)
    out_t = [ y_(t-2), y_(t-1), y_t ]   side by side on the channels,   y_t = 0 for t < 0           (2)

With (2) a convolution over time and space is one over space (Wan2.1's causal VAE). Arithmetic is fp32, rounded once.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Implementation, use_pallas
from pallas_kernels.norm_silu_taps import reference

_CHANNELS = (96, 192, 384)
"""Channels of the published VAE's levels; a tile of the kernel holds whole pixels."""


def norm_silu_taps(
    x: Float[Array, "B T H W C"],
    gamma: Float[Array, " C"],
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "B T H W C3"]:
    """Equations (1) and (2) for a clip from its start; differentiable in both arguments.

    Args:
        x: Features of the frames of a clip.
        gamma: Weight of the norm.
        implementation: ``"pallas"`` (Hopper, bf16, 96, 192 or 384 channels, pixels of a frame a multiple of 8),
            ``"xla"``, or ``None`` for the first of these that can run.

    Returns:
        Three times as many channels.

    Raises:
        NotImplementedError: The kernel is asked for and cannot run here.
    """
    run = _fused if use_pallas("norm_silu_taps", implementation, obstacle(x, gamma)) else reference.norm_silu_taps
    return run(x, gamma)


def runs_as_kernel(x: Float[Array, "B T H W C"], gamma: Float[Array, " C"]) -> bool:
    """Whether ``norm_silu_taps`` would choose the kernel."""
    return use_pallas("norm_silu_taps", None, obstacle(x, gamma))


def obstacle(x: Array, gamma: Array) -> str | None:
    """Why the kernel, or that of ``norm_silu_pairs``, cannot take these operands."""
    pixels = x.shape[2] * x.shape[3]
    if not x.dtype == gamma.dtype == jnp.bfloat16:
        return f"x and gamma must be bfloat16, not {x.dtype} and {gamma.dtype}"
    if x.shape[-1] not in _CHANNELS:
        return f"there must be {_CHANNELS} channels, not {x.shape[-1]}"
    if pixels % 8:
        return f"the pixels of a frame must be a multiple of 8, not {pixels}"
    return None


@jax.custom_vjp
def _fused(x: Array, gamma: Array) -> Array:
    from pallas_kernels.norm_silu_taps import hopper

    batch, frames, height, width, channels = x.shape
    out = hopper.norm_silu_taps(x.reshape(batch, frames, height * width, channels), gamma)
    return out.reshape(batch, frames, height, width, 3 * channels)


def _forward(x: Array, gamma: Array) -> tuple[Array, tuple[Array, Array]]:
    return _fused(x, gamma), (x, gamma)


def _backward(operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    """Of the reference."""
    return jax.vjp(reference.norm_silu_taps, *operands)[1](cotangent)


_fused.defvjp(_forward, _backward)
