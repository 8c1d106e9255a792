"""Input of a causal convolution over three frames that computes two frames at once, in one pass.

    y_t = SiLU( x_t / max(|x_t|, 1e-12) sqrt(C) gamma )     over the channels of a pixel; 0 for t < 0     (1)

Two results of a filter g_0, g_1, g_2 over time,

    z_t     = g_0 y_(t-2) + g_1 y_(t-1) + g_2 y_t
    z_(t+1) = g_0 y_(t-1) + g_1 y_t     + g_2 y_(t+1),

take six products, but only four by Winograd's F(2, 3) (arXiv 1509.09308), with t = 2n:

    d_0 = y_(t-2) - y_t     d_1 = y_(t-1) + y_t     d_2 = y_t - y_(t-1)     d_3 = y_(t-1) - y_(t+1)       (2)
    z_t     = g_0 d_0 + (g_0 + g_1 + g_2) / 2 d_1 + (g_0 - g_1 + g_2) / 2 d_2                             (3)
    z_(t+1) =           (g_0 + g_1 + g_2) / 2 d_1 - (g_0 - g_1 + g_2) / 2 d_2 - g_2 d_3                   (4)

The op computes the four sums (2) of every pair n. The products, (3) and (4) are left to convolutions over space.
Arithmetic is fp32, rounded once.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Implementation, ImplementationName, Op, hopper_obstacle, with_reference_gradient
from pallas_kernels.norm_silu_pairs import reference
from pallas_kernels.norm_silu_pairs.reference import Sums

_CHANNELS = (96, 192, 384)
"""Channels of the published VAE's levels; a tile of the kernel holds whole pixels."""


def norm_silu_pairs(
    x: Float[Array, "B T H W C"],
    gamma: Float[Array, " C"],
    *,
    implementation: ImplementationName | None = None,
) -> Sums:
    """Equations (1) and (2) for a clip from its start; differentiable in both arguments.

    Args:
        x: Features of the frames of a clip.
        gamma: Weight of the norm.
        implementation: ``"pallas"`` (Hopper, bf16, 96, 192 or 384 channels, pixels of a frame a multiple of 8),
            ``"xla"``, or ``None`` for the first of these that can run.

    Returns:
        d_0 to d_3, N = ceil(T / 2) frames each; a clip of odd length is continued by one frame of zeros.

    Raises:
        NotImplementedError: ``"pallas"`` was requested and cannot run here.
    """
    return _OP.run(implementation, x, gamma)


def runs_as_kernel(x: Float[Array, "B T H W C"], gamma: Float[Array, " C"]) -> bool:
    """Whether ``norm_silu_pairs`` would choose the kernel."""
    return _OP.choose(None, x, gamma) == "pallas"


def _obstacle(x: Array, gamma: Array) -> str | None:
    """Why the kernel cannot take these operands; ``None`` if it can."""
    pixels = x.shape[2] * x.shape[3]
    if not x.dtype == gamma.dtype == jnp.bfloat16:
        return f"x and gamma must be bfloat16, not {x.dtype} and {gamma.dtype}"
    if x.shape[-1] not in _CHANNELS:
        return f"there must be {_CHANNELS} channels, not {x.shape[-1]}"
    if pixels % 8:
        return f"the pixels of a frame must be a multiple of 8, not {pixels}"
    return None


def _kernel(x: Array, gamma: Array) -> Sums:
    from pallas_kernels.norm_silu_pairs import hopper  # imports Mosaic, which not every build of JAX contains

    batch, frames, height, width, channels = x.shape
    sums = hopper.norm_silu_pairs(x.reshape(batch, frames, height * width, channels), gamma)
    first, second, third, fourth = (d.reshape(batch, -1, height, width, channels) for d in sums)
    return first, second, third, fourth


_OP = Op(
    "norm_silu_pairs",
    {
        "pallas": Implementation(
            run=with_reference_gradient(_kernel, reference.norm_silu_pairs),
            operand_obstacle=_obstacle,
            device_obstacle=hopper_obstacle,
        ),
        "xla": Implementation(run=reference.norm_silu_pairs),
    },
)
