"""The residual sum and norm on Hopper: one warpgroup holds one token in registers, from load to store.

The pass is bound by memory: it reads x and update and writes both results once, 16 bytes per lane and access. The rows
of gate, scale and shift are shared by all tokens and read from L2. Keeping them in registers or shared memory over
several tokens measured slower, since fewer warpgroups then fit on an SM (figures in the README).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.compat import CompilerParams, Layout, Ref, kernel, load, pl
from pallas_kernels.lowering import lowered_once

_BYTES_PER_ACCESS = 16


@lowered_once("num_history", "norm_history", "eps")
def residual_norm(
    x: Float[Array, "B S D"],
    update: Float[Array, "B S2 D"],
    gate: Float[Array, "R P D"] | None,
    scale: Float[Array, "R2 P2 D"],
    shift: Float[Array, "R3 P3 D"],
    *,
    num_history: int,
    norm_history: bool,
    eps: float,
) -> tuple[Float[Array, "B S D"], Float[Array, "B S3 D"]]:
    """The residual stream and its norm; ``pallas_kernels.adaln.residual_norm`` explains the arguments."""
    batch, tokens, dim = x.shape
    first_updated = tokens - update.shape[1]
    first_normed = 0 if norm_history else num_history
    layout = Layout.WG_STRIDED((dim,), vec_size=_BYTES_PER_ACCESS // x.dtype.itemsize)

    def body(*refs: Ref) -> None:
        x_ref, update_ref, *gate_ref, scale_ref, shift_ref, stream_ref, normed_ref = refs
        token, sample = lax.axis_index("token"), lax.axis_index("sample")
        is_current = token >= num_history

        def fetch(ref: Ref) -> Array:
            return load(ref, layout=layout)

        def row(ref: Ref) -> Array:
            samples, positions, _ = ref.shape
            return fetch(ref.at[sample if samples > 1 else 0, is_current.astype(jnp.int32) if positions > 1 else 0])

        stream = fetch(x_ref.at[sample, token])
        # Tokens without an update read the first one, which is in the cache. Two branches would be slower: LLVM merges
        # their ends, loses sight of the alignment, and splits the 16-byte accesses into single elements.
        change = fetch(update_ref.at[sample, lax.max(token - first_updated, 0)]).astype(jnp.float32)
        change = change * row(*gate_ref) if gate_ref else change
        total = (stream.astype(jnp.float32) + change).astype(x.dtype)
        if first_updated:
            total = jnp.where(jnp.broadcast_to(token >= first_updated, (dim,)), total, stream)
        stream = total
        stream_ref[sample, token] = stream

        @pl.when(token >= first_normed)
        def _() -> None:
            z = stream.astype(jnp.float32)
            z = z - jnp.sum(z) * (1 / dim)
            z = z * lax.rsqrt(jnp.sum(z * z) * (1 / dim) + eps)
            normed_ref[sample, token - first_normed] = (z * row(scale_ref) + row(shift_ref)).astype(x.dtype)

    operands = [operand for operand in (x, update, gate, scale, shift) if operand is not None]
    return tuple(
        kernel(
            body,
            out_type=[
                jax.ShapeDtypeStruct(x.shape, x.dtype),
                jax.ShapeDtypeStruct((batch, tokens - first_normed, dim), x.dtype),
            ],
            grid=(batch, tokens),
            grid_names=("sample", "token"),
            # Only the reductions use shared memory, and they synchronise by themselves.
            compiler_params=CompilerParams(approx_math=True, unsafe_no_auto_barriers=True),
            kernel_name="residual_norm",
        )(*operands)
    )
