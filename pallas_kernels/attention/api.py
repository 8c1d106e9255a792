"""Attention: one function, three implementations, and the choice between them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pallas_kernels import compat
from pallas_kernels.attention.cudnn import attention_cudnn, attention_cudnn_gradient
from pallas_kernels.attention.hopper import attention_hopper, choose_config
from pallas_kernels.attention.xla import attention_xla
from pallas_kernels.dispatch import SPLIT

Implementation = Literal["pallas", "cudnn", "xla"]

Result = tuple[Array, Array | None]
"""Output and, when it is asked for, log-sum-exp."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Problem:
    """The static half of a call."""

    num_heads: int
    first_heads: tuple[int, int, int]
    scale: float
    kv_length: int
    return_lse: bool
    last_key_count: int = 1
    residual_name: str | None = None


@overload
def attention(*operands: Array, return_lse: Literal[True], **options: Any) -> tuple[Array, Array]: ...
@overload
def attention(*operands: Array, return_lse: bool = False, **options: Any) -> Array: ...
def attention(
    q: Float[Array, "B S N K"],
    k: Float[Array, "B S2 N K"],
    v: Float[Array, "B S2 N K"],
    *,
    scale: float | None = None,
    kv_length: int | None = None,
    last_key_count: int = 1,
    implementation: Implementation | None = None,
    return_lse: bool = False,
    residual_name: str | None = None,
) -> Float[Array, "B S N K"] | tuple[Float[Array, "B S N K"], Float[Array, "B N S"]]:
    """softmax(scale q k^T) v over the first ``kv_length`` keys.

    Sequences whose length is a multiple of 8 reach the kernel without a copy. A caller whose length is not can
    keep its arrays padded and pass the true number of keys: padded rows of ``k`` and ``v`` must be finite, and
    padded rows of ``q`` give rows of no meaning.

    Args:
        q: Queries.
        k: Keys.
        v: Values, in the dtype of ``q`` and ``k``.
        scale: Factor of the logits, by default 1/sqrt(K).
        kv_length: Number of keys that count, by default all.
        last_key_count: How many times the last of these keys counts: instead of equal keys with equal values, such as
            those of padding, one of them.
        implementation: ``"pallas"`` (Hopper, 16-bit, K of 64 or 128), ``"cudnn"`` (GPU, 16-bit, every key once, no
            log-sum-exp), ``"xla"``, or ``None`` for the first of these that can run.
        return_lse: Whether to return also the natural logarithm of the sum of exponentials, fp32. No gradient
            flows through it.
        residual_name: Name of the output and of the log-sum-exp for policies of ``jax.checkpoint``. Where both are
            kept, a gradient does not compute the attention again.

    Raises:
        ValueError: Shapes, types or ``kv_length`` do not fit together, ``last_key_count`` is below 1, or
            ``implementation`` is unknown.
        NotImplementedError: The implementation that was asked for cannot run here.
    """
    return attention_packed(
        q,
        k,
        v,
        num_heads=q.shape[2],
        scale=scale,
        kv_length=kv_length,
        last_key_count=last_key_count,
        implementation=implementation,
        return_lse=return_lse,
        residual_name=residual_name,
    )


@overload
def attention_packed(*operands: Array, return_lse: Literal[True], **options: Any) -> tuple[Array, Array]: ...
@overload
def attention_packed(*operands: Array, return_lse: bool = False, **options: Any) -> Array: ...
def attention_packed(
    q: Float[Array, "B S N0 K"],
    k: Float[Array, "B S2 N1 K"],
    v: Float[Array, "B S2 N2 K"],
    *,
    num_heads: int,
    first_heads: tuple[int, int, int] = (0, 0, 0),
    scale: float | None = None,
    kv_length: int | None = None,
    last_key_count: int = 1,
    implementation: Implementation | None = None,
    return_lse: bool = False,
    residual_name: str | None = None,
) -> Float[Array, "B S N K"] | tuple[Float[Array, "B S N K"], Float[Array, "B N S"]]:
    """:func:`attention` on ``num_heads`` heads of arrays that hold more.

    The output of a fused projection, [B, S, 3 N, K], is passed three times with ``first_heads=(0, N, 2 * N)``: the
    Pallas kernel reads the heads where they are, while a slice would be copied before the call.

    Args:
        q: Queries in heads ``first_heads[0]`` to ``first_heads[0] + num_heads``.
        k: Keys, from head ``first_heads[1]``.
        v: Values, from head ``first_heads[2]``.
        num_heads: Heads that attend.
        first_heads: See above.
        scale: As in :func:`attention`, like the remaining arguments.
        kv_length: See ``scale``.
        last_key_count: See ``scale``.
        implementation: See ``scale``.
        return_lse: See ``scale``.
        residual_name: See ``scale``.
    """
    problem = _Problem(
        num_heads=num_heads,
        first_heads=first_heads,
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        kv_length=k.shape[1] if kv_length is None else kv_length,
        return_lse=return_lse,
        last_key_count=last_key_count,
        residual_name=residual_name,
    )
    _check(q, k, v, problem)
    out, lse = _choose(implementation, q, problem)(q, k, v, problem)
    return (out, lse) if return_lse else out


def _check(q: Array, k: Array, v: Array, problem: _Problem) -> None:
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if k.shape[:2] != v.shape[:2] or k.shape[0] != q.shape[0] or not q.shape[-1] == k.shape[-1] == v.shape[-1]:
        raise ValueError(f"q [B,S,N,K] and k, v [B,S2,N,K] do not fit: {q.shape}, {k.shape} and {v.shape}")
    if not 1 <= problem.kv_length <= k.shape[1]:
        raise ValueError(f"kv_length must be in 1..{k.shape[1]}, the number of keys given, got {problem.kv_length}")
    if problem.last_key_count < 1:
        raise ValueError(f"last_key_count must be at least 1, got {problem.last_key_count}; kv_length drops keys")
    for name, x, first in zip("qkv", (q, k, v), problem.first_heads, strict=True):
        if not 0 <= first <= x.shape[2] - problem.num_heads:
            raise ValueError(f"{name} has {x.shape[2]} heads, needed are {problem.num_heads} from head {first} on")


def _select(q: Array, k: Array, v: Array, problem: _Problem) -> tuple[Array, Array, Array]:
    """The heads and keys that take part, for implementations that want exactly these."""
    q, k, v = (
        jax.lax.slice_in_dim(x, first, first + problem.num_heads, axis=2)
        for x, first in zip((q, k, v), problem.first_heads, strict=True)
    )
    return q, k[:, : problem.kv_length], v[:, : problem.kv_length]


def _named(result: Result, problem: _Problem) -> Result:
    name = problem.residual_name
    return result if name is None else jax.tree.map(lambda array: checkpoint_name(array, name), result)


def _xla(q: Array, k: Array, v: Array, problem: _Problem) -> Result:
    out, lse = attention_xla(*_select(q, k, v, problem), scale=problem.scale, last_key_count=problem.last_key_count)
    return _named((out, jax.lax.stop_gradient(lse) if problem.return_lse else None), problem)


def _cudnn(q: Array, k: Array, v: Array, problem: _Problem) -> Result:
    return _named((attention_cudnn(*_select(q, k, v, problem), scale=problem.scale), None), problem)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _pallas(q: Array, k: Array, v: Array, problem: _Problem) -> Result:
    length = q.shape[1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % 8), (0, 0), (0, 0))) for x in (q, k, v))
    options = dataclasses.asdict(problem)
    del options["residual_name"]
    out, lse = attention_hopper(q, k, v, **options, config=choose_config(problem.kv_length))
    return out[:, :length], None if lse is None else lse[:, :, :length]


def _pallas_forward(
    q: Array, k: Array, v: Array, problem: _Problem
) -> tuple[Result, tuple[Array, Array, Array, Array, Array]]:
    out, lse = _named(_pallas(q, k, v, dataclasses.replace(problem, return_lse=True)), problem)
    return (out, lse if problem.return_lse else None), (q, k, v, out, lse)


def _pallas_backward(
    problem: _Problem, saved: tuple[Array, Array, Array, Array, Array], cotangents: Result
) -> tuple[Array, Array, Array]:
    """cuDNN's, or XLA's where a key counts several times. The sums of exponentials have no gradient."""
    q, k, v, out, lse = saved
    if problem.last_key_count > 1:
        return jax.vjp(lambda *qkv: _xla(*qkv, problem)[0], q, k, v)[1](cotangents[0])
    selected, put_back = jax.vjp(functools.partial(_select, problem=problem), q, k, v)
    return put_back(attention_cudnn_gradient(*selected, out, lse, cotangents[0], scale=problem.scale))


_pallas.defvjp(_pallas_forward, _pallas_backward)


def _pallas_obstacle(q: Array, problem: _Problem) -> str | None:
    if not compat.is_hopper():
        return "it needs a GPU of compute capability 9.0 as the default device"
    if compat.compiler_splits_work():
        return SPLIT
    if q.shape[-1] not in (64, 128):
        return f"it needs a head dimension of 64 or 128, got {q.shape[-1]}"
    if problem.scale <= 0:
        return f"it needs a positive scale, got {problem.scale}"
    return _half_precision_obstacle(q)


def _cudnn_obstacle(q: Array, problem: _Problem) -> str | None:
    if jax.default_backend() != "gpu":
        return "it needs a GPU as the default device"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"it needs a head dimension that is a multiple of 8 and at most 128, got {q.shape[-1]}"
    if problem.return_lse:
        return "JAX rounds its log-sum-exp to the dtype of q"
    if problem.last_key_count > 1:
        return f"it counts every key once, got last_key_count={problem.last_key_count}"
    return _half_precision_obstacle(q)


def _half_precision_obstacle(q: Array) -> str | None:
    return None if q.dtype in (jnp.bfloat16, jnp.float16) else f"it needs bfloat16 or float16, got {q.dtype}"


Run = Callable[[Array, Array, Array, _Problem], Result]
Obstacle = Callable[[Array, _Problem], str | None]

_IMPLEMENTATIONS: dict[str, tuple[Run, Obstacle]] = {
    "pallas": (_pallas, _pallas_obstacle),
    "cudnn": (_cudnn, _cudnn_obstacle),
    "xla": (_xla, lambda q, problem: None),
}
"""By falling speed: how to run each, and why it cannot run (``None``: it can)."""


def _choose(implementation: str | None, q: Array, problem: _Problem) -> Run:
    if implementation is None:
        return next(run for run, obstacle in _IMPLEMENTATIONS.values() if obstacle(q, problem) is None)
    if implementation not in _IMPLEMENTATIONS:
        names = ", ".join(map(repr, _IMPLEMENTATIONS))
        raise ValueError(f"unknown attention implementation {implementation!r}; expected {names} or None")
    run, obstacle = _IMPLEMENTATIONS[implementation]
    if reason := obstacle(q, problem):
        raise NotImplementedError(
            f"attention with implementation={implementation!r} cannot run: {reason}; implementation=None takes the "
            "fastest that can"
        )
    return run
