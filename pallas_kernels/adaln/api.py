"""Residual sum and modulated LayerNorm in one pass over the tokens.

    stream = x + gate * update                                  rounded to the dtype of x        (1)
    normed = LayerNorm(stream) * scale + shift                  rounded to the dtype of x        (2)

Sums, statistics and modulation are fp32. A sequence is  history | current,  and ``gate``, ``scale`` and ``shift``
have one row for each of the two, chosen by position. These are the three element-wise passes of a Helios block
(arXiv 2603.04379): before self-attention, before cross-attention and before the FFN.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.adaln import reference
from pallas_kernels.dispatch import Implementation, ImplementationName, Op, hopper_obstacle, with_reference_gradient

_LANE_CHANNELS = 1024
"""Channels that one warpgroup moves with one 16-byte access per lane."""

_MAX_DIM = 8 * _LANE_CHANNELS
"""Wider rows do not fit the registers of a warpgroup."""


def residual_norm(
    x: Float[Array, "B S D"],
    update: Float[Array, "B S2 D"] | None,
    *,
    gate: Float[Array, "R P D"] | None,
    scale: Float[Array, "R2 P2 D"],
    shift: Float[Array, "R3 P3 D"],
    num_history: int = 0,
    norm_history: bool = True,
    eps: float = 1e-6,
    implementation: ImplementationName | None = None,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S3 D"]]:
    """Equations (1) and (2); differentiable in all array arguments.

    Args:
        x: The residual stream.
        update: Output of the previous sub-layer, for all S tokens or for the current ones only (S - num_history);
            history then passes through equation (1) unchanged. ``None``: x is already the stream.
        gate: fp32 rows of equation (1); ``None`` adds the bare update.
        scale: fp32 rows of equation (2), the whole factor: 1 + modulation for adaLN, the weight for an affine norm.
        shift: fp32 rows of equation (2).
        num_history: Number of history tokens, which come first.
        norm_history: Whether history is normalised too; otherwise ``normed`` has the current tokens only.
        eps: Added to the variance.
        implementation: ``"pallas"`` (Hopper, bf16, D a multiple of 1024), ``"xla"``, or ``None`` for the first of
            these that can run.

    Rows are [samples, positions, D]: one sample or B, and either (history, current) or one row for both.

    Returns:
        ``stream`` for all tokens and ``normed`` for all or for the current tokens.

    Raises:
        ValueError: Shapes or types do not fit together.
        NotImplementedError: ``"pallas"`` was requested and cannot run here.
    """
    batch, tokens, dim = x.shape
    current = tokens - num_history
    if not 0 <= num_history < tokens:
        raise ValueError(f"num_history is {num_history}; it must leave at least one of the {tokens} tokens")
    if update is not None and update.shape[1] not in (tokens, current):
        raise ValueError(f"update has {update.shape[1]} tokens; expected all {tokens} or the {current} current ones")
    for name, rows in (("gate", gate), ("scale", scale), ("shift", shift)):
        if rows is not None and (rows.shape[0] not in (1, batch) or rows.shape[1] not in (1, 2)):
            raise ValueError(f"{name} has shape {rows.shape}; expected [1 or {batch}, 1 or 2, {dim}]")

    settings = {"num_history": num_history, "norm_history": norm_history, "eps": eps}
    return _OP.run(implementation, x, update, gate, scale, shift, **settings)


def _obstacle(
    x: Array, update: Array | None, gate: Array | None, scale: Array, shift: Array, **settings: Any
) -> str | None:
    """Why the kernel cannot take these operands; ``None`` if it can."""
    dim = x.shape[-1]
    if update is None:
        return "there is no update, and XLA computes a norm alone in one pass too"
    if not x.dtype == update.dtype == jnp.bfloat16:
        return f"x and update must be bfloat16, not {x.dtype} and {update.dtype}"
    if dim % _LANE_CHANNELS or dim > _MAX_DIM:
        return f"D must be a multiple of {_LANE_CHANNELS} up to {_MAX_DIM}, not {dim}"
    return None


def _kernel(
    x: Array, update: Array, gate: Array | None, scale: Array, shift: Array, **settings: Any
) -> tuple[Array, Array]:
    from pallas_kernels.adaln import hopper  # imports Mosaic, which not every build of JAX contains

    return hopper.residual_norm(x, update, gate, scale, shift, **settings)


_OP = Op(
    "residual_norm",
    {
        "pallas": Implementation(
            run=with_reference_gradient(_kernel, reference.residual_norm),
            operand_obstacle=_obstacle,
            device_obstacle=hopper_obstacle,
        ),
        "xla": Implementation(run=reference.residual_norm),
    },
)
