"""The three ways in which the attention kernel uses the tensor cores, on a GPU and in the interpreter.

Pallas' GPU interpreter has neither accumulators that start from a value nor left operands in registers. There each
function computes the same product with ``jnp.dot``, so that everything around the products is tested as written.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import compat
from pallas_kernels.compat import Ref, pl


def scores(q: Ref, k: Ref, *, interpret: bool) -> Float[Array, "S T"]:
    """Q K^T in fp32."""
    if interpret:
        return _dot(_read(q), _read(k).T)

    def run(s: Ref) -> Array:
        compat.wgmma(s, q, k.transpose((1, 0)))
        return s[...]

    return pl.run_scoped(run, _accumulator(q, k))


def update(o: Float[Array, "S K"], p: Float[Array, "S T"], v: Ref, *, interpret: bool) -> Float[Array, "S K"]:
    """O + P V with P in registers."""
    if interpret:
        return o + _dot(p, _read(v))

    def run(acc: Ref) -> Array:
        acc[...] = o
        compat.wgmma(acc, p, v)
        return acc[...]

    return pl.run_scoped(run, compat.ACC((o.shape[0], o.shape[1]), jnp.float32))


def scores_and_update[T](
    q: Ref,
    k: Ref,
    o: Float[Array, "S K"],
    p: Float[Array, "S T"],
    v: Ref,
    *,
    before_update: Callable[[], None],
    softmax: Callable[[Array], T],
    interpret: bool,
) -> tuple[Array, T]:
    """``(O + P V, softmax(Q K^T))``: both products are in flight together, ``softmax`` needs only the first."""
    if interpret:
        s = _dot(_read(q), _read(k).T)
        before_update()
        return o + _dot(p, _read(v)), softmax(s)

    def run(s: Ref, acc: Ref) -> tuple[Array, T]:
        acc[...] = o
        compat.wgmma(s, q, k.transpose((1, 0)))
        before_update()
        compat.wgmma(acc, p, v)
        out = softmax(compat.wgmma_accumulator_load(s, wait_n=1))
        return acc[...], out

    return pl.run_scoped(run, _accumulator(q, k), compat.ACC((o.shape[0], o.shape[1]), jnp.float32))


def _accumulator(q: Ref, k: Ref) -> compat.ACC:
    return compat.ACC((q.shape[0], k.shape[0]), jnp.float32)


def _read(ref: Ref) -> Array:
    """Loads an operand. A wgmma reads through the async proxy, as TMA writes; a plain load needs a fence for that."""
    value = ref[...]
    compat.commit_smem()
    return value


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)
