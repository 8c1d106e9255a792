"""Residual sum and modulated LayerNorm in one pass over the tokens.

    stream = x + gate * update                                  rounded to the dtype of x        (1)
    normed = LayerNorm(stream) * scale + shift                  rounded to the dtype of x        (2)

Sums, statistics and modulation are fp32. A sequence is  history | current,  and ``gate``, ``scale`` and ``shift``
have one row for each of the two, chosen by position. These are the three element-wise passes of a Helios block
(arXiv 2603.04379): in front of self-attention, of cross-attention and of the FFN.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.adaln import reference
from pallas_kernels.dispatch import Implementation, use_pallas

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
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S3 D"]]:
    """Equations (1) and (2); differentiable in all array arguments.

    Args:
        x: The residual stream.
        update: Output of the sub-layer before, for all S tokens or for the current ones only (S - num_history);
            history then passes through equation (1) unchanged. ``None``: x is the stream already.
        gate: fp32 rows of equation (1); ``None`` adds the bare update.
        scale: fp32 rows of equation (2), the whole factor: 1 + modulation for adaLN, the weight for an affine norm.
        shift: fp32 rows of equation (2).
        num_history: Number of history tokens in front.
        norm_history: Whether history is normalised too; otherwise ``normed`` holds the current tokens only.
        eps: Added to the variance.
        implementation: ``"pallas"`` (Hopper, bf16, D a multiple of 1024), ``"xla"``, or ``None`` for the first of
            these that can run.

    Rows are [samples, positions, D]: one sample or B, and either (history, current) or one row for both.

    Returns:
        ``stream`` for all tokens and ``normed`` for all or for the current tokens.

    Raises:
        ValueError: Shapes or types do not fit together.
        NotImplementedError: The kernel is asked for and cannot run here.
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

    obstacle = None
    if update is None:
        obstacle = "there is no update, and XLA makes a norm alone in one pass too"
    elif not x.dtype == update.dtype == jnp.bfloat16:
        obstacle = f"x and update must be bfloat16, not {x.dtype} and {update.dtype}"
    elif dim % _LANE_CHANNELS or dim > _MAX_DIM:
        obstacle = f"D must be a multiple of {_LANE_CHANNELS} up to {_MAX_DIM}, not {dim}"
    op = _fused if use_pallas("residual_norm", implementation, obstacle) else _plain
    return op(num_history, norm_history, eps, x, update, gate, scale, shift)


def _plain(
    num_history: int,
    norm_history: bool,
    eps: float,
    x: Array,
    update: Array | None,
    gate: Array | None,
    scale: Array,
    shift: Array,
) -> tuple[Array, Array]:
    options = {"num_history": num_history, "norm_history": norm_history, "eps": eps}
    return reference.residual_norm(x, update, gate=gate, scale=scale, shift=shift, **options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(num_history: int, norm_history: bool, eps: float, *operands: Array | None) -> tuple[Array, Array]:
    from pallas_kernels.adaln import hopper

    x, update, gate, scale, shift = operands
    options = {"num_history": num_history, "norm_history": norm_history, "eps": eps}
    return hopper.residual_norm(x, update, gate=gate, scale=scale, shift=shift, **options)


def _forward(
    num_history: int, norm_history: bool, eps: float, *operands: Array | None
) -> tuple[tuple[Array, Array], tuple[Array | None, ...]]:
    return _fused(num_history, norm_history, eps, *operands), operands


def _backward(
    num_history: int,
    norm_history: bool,
    eps: float,
    operands: tuple[Array | None, ...],
    cotangents: tuple[Array, Array],
) -> tuple[Array | None, ...]:
    """Of the reference, which recomputes the statistics: XLA fuses it into few passes."""
    return jax.vjp(functools.partial(_plain, num_history, norm_history, eps), *operands)[1](cotangents)


_fused.defvjp(_forward, _backward)
