"""RMSNorm and rotation on Hopper: one warpgroup holds the queries and keys of one token, from load to store.

A pair of bf16 channels is handled as one 32-bit word, even channel in the low half. A bf16 is the upper half of a
float32, so both channels come out of a word as fp32 by a shift and a mask, pairs stay within a lane, and neither the
weights nor the table need a permutation. For XLA the change of type is a bitcast and moves no data.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.compat import CompilerParams, Layout, Ref, Tiling, kernel, layout_cast, load
from pallas_kernels.lowering import lowered_once

_WORDS_PER_LANE = 4  # 16 bytes
_LANES, _WARPS = 32, 4


@lowered_once("q_start", "k_start", "eps")
def qk_norm_rope(
    q: Float[Array, "B S D2"],
    k: Float[Array, "B S D3"],
    q_scale: Float[Array, " D"],
    k_scale: Float[Array, " D"],
    table: Float[Array, "S 2 K2"],
    *,
    q_start: int,
    k_start: int,
    eps: float,
) -> tuple[Float[Array, "B S N K"], Float[Array, "B S N K"]]:
    """Norm and rotation; ``pallas_kernels.qk_norm_rope.qk_norm_rope`` explains the arguments."""
    batch, tokens, _ = q.shape
    dim, pairs = q_scale.size, table.shape[-1]
    heads = dim // (2 * pairs)

    # Of [heads, pairs]: each lane has 4 neighbouring words, and the same pairs of every head that it sees.
    heads_per_warp = _LANES * _WORDS_PER_LANE // pairs
    tiling = Tiling(((_WARPS * heads_per_warp, pairs), (heads_per_warp, pairs), (_WORDS_PER_LANE,)))
    layout = Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)
    row_layout = layout.reduce((0,))

    def body(
        q_ref: Ref,
        k_ref: Ref,
        q_scale_ref: Ref,
        k_scale_ref: Ref,
        table_ref: Ref,
        q_out_ref: Ref,
        k_out_ref: Ref,
    ) -> None:
        token, sample = lax.axis_index("token"), lax.axis_index("sample")

        def fetch(ref: Ref) -> Array:
            return load(ref, layout=layout, optimized=False)

        def fetch_row(i: int) -> Array:
            row = load(table_ref.at[token, i], layout=row_layout, optimized=False)
            return layout_cast(lax.broadcast_in_dim(row, (heads, pairs), [1]), layout)

        # All loads are issued before the first reduction waits.
        words = [
            fetch(ref.at[sample, token, heads_of])
            for ref, heads_of in ((q_ref, _heads(q_start, dim, pairs)), (k_ref, _heads(k_start, dim, pairs)))
        ]
        cos, sin = fetch_row(0), fetch_row(1)
        for x, scale_ref, out_ref in zip(words, (q_scale_ref, k_scale_ref), (q_out_ref, k_out_ref), strict=True):
            even, odd = _unpack(x)
            scale_even, scale_odd = _unpack(fetch(scale_ref))
            square = jnp.sum(jnp.sum(even * even + odd * odd, axis=0))
            factor = lax.rsqrt(square * (1 / dim) + eps)
            even, odd = _round(even * factor * scale_even), _round(odd * factor * scale_odd)
            out_ref[sample, token] = _pack(even * cos - odd * sin, even * sin + odd * cos)

    out_type = jax.ShapeDtypeStruct((batch, tokens, heads, pairs), jnp.uint32)
    outputs = kernel(
        body,
        out_type=[out_type, out_type],
        grid=(batch, tokens),
        grid_names=("sample", "token"),
        # Only the reductions use shared memory, and they synchronise by themselves.
        compiler_params=CompilerParams(approx_math=True, unsafe_no_auto_barriers=True),
        kernel_name="qk_norm_rope",
    )(*(_as_words(x, pairs) for x in (q, k, q_scale, k_scale)), table)
    q_out, k_out = (lax.bitcast_convert_type(x, jnp.bfloat16).reshape(batch, tokens, heads, -1) for x in outputs)
    return q_out, k_out


def _heads(start: int, dim: int, pairs: int) -> slice:
    return slice(start // (2 * pairs), (start + dim) // (2 * pairs))


def _as_words(x: Array, pairs: int) -> Array:
    """bf16 [..., N K] as words [..., N, K/2]."""
    return lax.bitcast_convert_type(x.reshape(*x.shape[:-1], -1, pairs, 2), jnp.uint32)


def _unpack(words: Array) -> tuple[Array, Array]:
    even, odd = words << 16, words & jnp.uint32(0xFFFF0000)
    return lax.bitcast_convert_type(even, jnp.float32), lax.bitcast_convert_type(odd, jnp.float32)


def _pack(even: Array, odd: Array) -> Array:
    even, odd = (lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16) for x in (even, odd))
    return even.astype(jnp.uint32) | odd.astype(jnp.uint32) << 16


def _round(x: Array) -> Array:
    return x.astype(jnp.bfloat16).astype(jnp.float32)
