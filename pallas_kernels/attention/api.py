"""Attention: one function, three implementations, and the choice between them."""

import dataclasses
import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pallas_kernels import dispatch
from pallas_kernels.attention.config import choose_config
from pallas_kernels.attention.cudnn import attention_cudnn, attention_cudnn_gradient
from pallas_kernels.attention.xla import attention_xla
from pallas_kernels.dispatch import Op, hopper_obstacle

ImplementationName = Literal["pallas", "cudnn", "xla"]

Result = tuple[Array, Array | None]
"""Output and, if requested, log-sum-exp."""

_Residuals = tuple[Array, Array, Array, Array, Array]
"""What the gradient needs: q, k, v, the output and its log-sum-exp."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Problem:
    """The arguments of a call that are not arrays; :func:`attention_packed` explains them."""

    num_heads: int
    first_heads: tuple[int, int, int]
    scale: float
    kv_length: int
    return_lse: bool
    last_key_count: int = 1
    residual_name: str | None = None


@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float | None = None,
    kv_length: int | None = None,
    last_key_count: int = 1,
    implementation: ImplementationName | None = None,
    return_lse: Literal[True],
    residual_name: str | None = None,
) -> tuple[Array, Array]: ...
@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float | None = None,
    kv_length: int | None = None,
    last_key_count: int = 1,
    implementation: ImplementationName | None = None,
    return_lse: Literal[False] = False,
    residual_name: str | None = None,
) -> Array: ...
def attention(
    q: Float[Array, "B S N K"],
    k: Float[Array, "B S2 N K"],
    v: Float[Array, "B S2 N K"],
    *,
    scale: float | None = None,
    kv_length: int | None = None,
    last_key_count: int = 1,
    implementation: ImplementationName | None = None,
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
        last_key_count: How many times the last of these keys counts. One key can so stand for many with the same key
            and value, such as those of padding.
        implementation: ``"pallas"`` (Hopper, 16-bit, K of 64 or 128), ``"cudnn"`` (GPU, 16-bit, every key once, no
            log-sum-exp), ``"xla"``, or ``None`` for the first of these that can run.
        return_lse: Whether to return also the natural logarithm of the sum of exponentials, fp32. No gradient
            flows through it.
        residual_name: Name of the output and of the log-sum-exp for policies of ``jax.checkpoint``. If a policy keeps
            both, the backward pass does not compute the attention again.

    Raises:
        ValueError: Shapes, types or ``kv_length`` do not fit together, ``last_key_count`` is below 1, or
            ``implementation`` is unknown.
        NotImplementedError: The requested implementation cannot run here.
    """
    problem = _Problem(
        num_heads=q.shape[2],
        first_heads=(0, 0, 0),
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        kv_length=k.shape[1] if kv_length is None else kv_length,
        return_lse=return_lse,
        last_key_count=last_key_count,
        residual_name=residual_name,
    )
    return _attend(implementation, q, k, v, problem)


@overload
def attention_packed(
    q: Array,
    k: Array,
    v: Array,
    *,
    num_heads: int,
    first_heads: tuple[int, int, int] = (0, 0, 0),
    scale: float | None = None,
    kv_length: int | None = None,
    last_key_count: int = 1,
    implementation: ImplementationName | None = None,
    return_lse: Literal[True],
    residual_name: str | None = None,
) -> tuple[Array, Array]: ...
@overload
def attention_packed(
    q: Array,
    k: Array,
    v: Array,
    *,
    num_heads: int,
    first_heads: tuple[int, int, int] = (0, 0, 0),
    scale: float | None = None,
    kv_length: int | None = None,
    last_key_count: int = 1,
    implementation: ImplementationName | None = None,
    return_lse: Literal[False] = False,
    residual_name: str | None = None,
) -> Array: ...
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
    implementation: ImplementationName | None = None,
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
        first_heads: First head in ``q``, ``k`` and ``v``.
        scale: Factor of the logits, by default 1/sqrt(K).
        kv_length: Number of keys that count, by default all.
        last_key_count: How many times the last of these keys counts.
        implementation: ``"pallas"``, ``"cudnn"``, ``"xla"``, or ``None`` for the first of these that can run.
        return_lse: Whether to return also the log-sum-exp.
        residual_name: Name of the results for policies of ``jax.checkpoint``.

    Raises:
        ValueError: As in :func:`attention`, or an array has too few heads.
        NotImplementedError: The requested implementation cannot run here.
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
    return _attend(implementation, q, k, v, problem)


def _attend(
    implementation: str | None, q: Array, k: Array, v: Array, problem: _Problem
) -> Any:  # one array or two, as the overloads of the callers say
    _check(q, k, v, problem)
    out, lse = _OP.run(implementation, q, k, v, problem)
    return (out, lse) if problem.return_lse else out


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
    """The heads and keys that take part, for implementations that take nothing else."""
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
    from pallas_kernels.attention import hopper  # imports Mosaic, which not every build of JAX contains

    q, k, v = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % 8), (0, 0), (0, 0))) for x in (q, k, v))
    out, lse = hopper.attention_hopper(
        q,
        k,
        v,
        num_heads=problem.num_heads,
        first_heads=problem.first_heads,
        scale=problem.scale,
        kv_length=problem.kv_length,
        last_key_count=problem.last_key_count,
        return_lse=problem.return_lse,
        config=choose_config(problem.kv_length),
    )
    return out[:, :length], None if lse is None else lse[:, :, :length]


def _pallas_forward(q: Array, k: Array, v: Array, problem: _Problem) -> tuple[Result, _Residuals]:
    out, lse = _named(_pallas(q, k, v, dataclasses.replace(problem, return_lse=True)), problem)
    assert lse is not None  # it was requested
    return (out, lse if problem.return_lse else None), (q, k, v, out, lse)


def _pallas_backward(problem: _Problem, saved: _Residuals, cotangents: Result) -> tuple[Array, Array, Array]:
    """The gradients of q, k and v by cuDNN, or by XLA where a key counts several times.

    cuDNN takes the output and log-sum-exp of the kernel, so that the attention is not computed again. The log-sum-exp
    as a result of the caller has no gradient.
    """
    q, k, v, out, lse = saved
    if problem.last_key_count > 1:
        return jax.vjp(lambda q, k, v: _xla(q, k, v, problem)[0], q, k, v)[1](cotangents[0])
    selected, put_back = jax.vjp(functools.partial(_select, problem=problem), q, k, v)
    return put_back(attention_cudnn_gradient(*selected, out, lse, cotangents[0], scale=problem.scale))


_pallas.defvjp(_pallas_forward, _pallas_backward)


def _pallas_obstacle(q: Array, k: Array, v: Array, problem: _Problem) -> str | None:
    """Why the kernel cannot compute the problem; ``None`` if it can."""
    if q.shape[-1] not in (64, 128):
        return f"it needs a head dimension of 64 or 128, got {q.shape[-1]}"
    if problem.scale <= 0:
        return f"it needs a positive scale, got {problem.scale}"
    return _half_precision_obstacle(q)


def _cudnn_obstacle(q: Array, k: Array, v: Array, problem: _Problem) -> str | None:
    """Why cuDNN cannot compute the problem; ``None`` if it can."""
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"it needs a head dimension that is a multiple of 8 and at most 128, got {q.shape[-1]}"
    if problem.return_lse:
        return "JAX rounds its log-sum-exp to the dtype of q"
    if problem.last_key_count > 1:
        return f"it counts every key once, got last_key_count={problem.last_key_count}"
    return _half_precision_obstacle(q)


def _half_precision_obstacle(q: Array) -> str | None:
    return None if q.dtype in (jnp.bfloat16, jnp.float16) else f"it needs bfloat16 or float16, got {q.dtype}"


def _gpu_obstacle() -> str | None:
    return None if jax.default_backend() == "gpu" else "it needs a GPU as the default device"


_OP = Op(
    "attention",
    {
        "pallas": dispatch.Implementation(
            run=_pallas, operand_obstacle=_pallas_obstacle, device_obstacle=hopper_obstacle
        ),
        "cudnn": dispatch.Implementation(run=_cudnn, operand_obstacle=_cudnn_obstacle, device_obstacle=_gpu_obstacle),
        "xla": dispatch.Implementation(run=_xla),
    },
)
