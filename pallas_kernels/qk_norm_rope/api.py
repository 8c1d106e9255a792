"""RMSNorm and rotary embedding of queries and keys in one pass over the tokens.

    n = x / sqrt(mean(x^2) + eps) * weight          over all heads; rounded to the dtype of x     (1)
    (even, odd) -> (even cos - odd sin, even sin + odd cos)    rounded to the dtype of x          (2)

Statistics, weights and rotation are fp32. Channels rotate in interleaved pairs, with one table for all heads:
self-attention of Wan2.1 and Helios (arXiv 2603.04379).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Implementation, ImplementationName, Op, hopper_obstacle, with_reference_gradient
from pallas_kernels.qk_norm_rope import reference

_HEAD_DIMS = (64, 128)
_LANE_CHANNELS = 1024
"""Channels that one warpgroup moves with one 16-byte access per lane."""

_MAX_DIM = 6 * _LANE_CHANNELS
"""The queries and keys of wider models do not fit the registers of a warpgroup together."""


def qk_norm_rope(
    q: Float[Array, "B S D2"],
    k: Float[Array, "B S D3"],
    q_scale: Float[Array, " D"],
    k_scale: Float[Array, " D"],
    table: Float[Array, "*samples S 2 K2"],
    *,
    q_start: int = 0,
    k_start: int = 0,
    eps: float = 1e-6,
    implementation: ImplementationName | None = None,
) -> tuple[Float[Array, "B S N K"], Float[Array, "B S N K"]]:
    """Equations (1) and (2) for queries and keys; differentiable in all array arguments.

    Args:
        q: Projected queries, in channels ``q_start`` to ``q_start + D``. A fused projection can be passed for both
            ``q`` and ``k``, with different starts, without being sliced first.
        k: Projected keys, in channels ``k_start`` to ``k_start + D``.
        q_scale: Weight of the norm of the queries.
        k_scale: Weight of the norm of the keys.
        table: cos and sin of every token for the K/2 pairs of a head, fp32; one for all samples, or one for each.
        q_start: First channel of the queries in ``q``.
        k_start: First channel of the keys in ``k``.
        eps: Added to the mean square.
        implementation: ``"pallas"`` (Hopper, bf16, D a multiple of 1024, heads of 64 or 128 channels), ``"xla"``, or
            ``None`` for the first of these that can run.

    Returns:
        Queries and keys, split into heads.

    Raises:
        ValueError: Shapes or types do not fit together.
        NotImplementedError: ``"pallas"`` was requested and cannot run here.
    """
    dim, head_dim = q_scale.size, 2 * table.shape[-1]
    if dim % head_dim:
        raise ValueError(f"{dim} channels do not divide into heads of {head_dim}, twice the pairs of the table")
    for name, x, start in (("q", q, q_start), ("k", k, k_start)):
        if not 0 <= start <= x.shape[-1] - dim:
            raise ValueError(f"{name} has {x.shape[-1]} channels; expected at least {start} + {dim}")
    if table.dtype != jnp.float32:
        raise ValueError(f"the table is {table.dtype}; expected float32")

    settings = {"q_start": q_start, "k_start": k_start, "eps": eps}
    return _OP.run(implementation, q, k, q_scale, k_scale, table, **settings)


def _obstacle(
    q: Array, k: Array, q_scale: Array, k_scale: Array, table: Array, *, q_start: int, k_start: int, eps: float
) -> str | None:
    """Why the kernel cannot take these operands; ``None`` if it can."""
    dim, head_dim = q_scale.size, 2 * table.shape[-1]
    if table.ndim > 3:
        return "the table must be one for all samples"
    if not q.dtype == k.dtype == q_scale.dtype == k_scale.dtype == jnp.bfloat16:
        dtypes = ", ".join(str(x.dtype) for x in (q, k, q_scale, k_scale))
        return f"q, k and their scales must be bfloat16, not {dtypes}"
    if head_dim not in _HEAD_DIMS:
        return f"heads must have {_HEAD_DIMS} channels, not {head_dim}"
    if dim % _LANE_CHANNELS or dim > _MAX_DIM:
        return f"D must be a multiple of {_LANE_CHANNELS} up to {_MAX_DIM}, not {dim}"
    if any(size % head_dim for size in (q_start, k_start, q.shape[-1], k.shape[-1])):
        return f"starts and widths must be multiples of the head dimension {head_dim}"
    return None


def _kernel(*operands: Array, **settings: Any) -> tuple[Array, Array]:
    from pallas_kernels.qk_norm_rope import hopper  # imports Mosaic, which not every build of JAX contains

    return hopper.qk_norm_rope(*operands, **settings)


_OP = Op(
    "qk_norm_rope",
    {
        "pallas": Implementation(
            run=with_reference_gradient(_kernel, reference.qk_norm_rope),
            operand_obstacle=_obstacle,
            device_obstacle=hopper_obstacle,
        ),
        "xla": Implementation(run=reference.qk_norm_rope),
    },
)
