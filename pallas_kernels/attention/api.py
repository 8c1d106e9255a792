"""Softmax attention on arrays of its heads, or on larger arrays that contain them."""

from typing import Any, Literal, overload

from jaxtyping import Array, Float

from pallas_kernels.attention.implementations import OP, Problem

ImplementationName = Literal["pallas", "cudnn", "xla"]


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

    Sequences whose length is a multiple of 8 reach the kernel without a copy. A caller whose length is not can keep its
    arrays padded and pass the true number of keys: padded rows of ``k`` and ``v`` must be finite, and padded rows of
    ``q`` give meaningless rows.

    Args:
        q: Queries.
        k: Keys.
        v: Values, in the dtype of ``q`` and ``k``.
        scale: Factor of the logits, by default 1/sqrt(K).
        kv_length: Number of keys that count, by default all.
        last_key_count: How many times the last of these keys counts. One key can thus stand for many with the same key
            and value, such as padding.
        implementation: ``"pallas"`` (Hopper, 16-bit, K of 64 or 128), ``"cudnn"`` (GPU, 16-bit, every key once, no
            log-sum-exp), ``"xla"``, or ``None`` for the first of these that can run.
        return_lse: Whether to also return the natural logarithm of the sum of exponentials, fp32. No gradient
            flows through it.
        residual_name: Name of the output and of the log-sum-exp for policies of ``jax.checkpoint``. If a policy keeps
            both, the backward pass does not compute the attention again.

    Raises:
        ValueError: Shapes, types or ``kv_length`` do not fit together, ``last_key_count`` is below 1, or
            ``implementation`` is unknown.
        NotImplementedError: The requested implementation cannot run here.
    """
    problem = Problem(
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
    """:func:`attention` on ``num_heads`` heads of arrays that contain more.

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
        return_lse: Whether to also return the log-sum-exp.
        residual_name: Name of the results for policies of ``jax.checkpoint``.

    Raises:
        ValueError: As in :func:`attention`, or an array has too few heads.
        NotImplementedError: The requested implementation cannot run here.
    """
    problem = Problem(
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
    implementation: str | None, q: Array, k: Array, v: Array, problem: Problem
) -> Any:  # one array or two, as the overloads of the callers say
    _check(q, k, v, problem)
    out, lse = OP.run(implementation, q, k, v, problem)
    return (out, lse) if problem.return_lse else out


def _check(q: Array, k: Array, v: Array, problem: Problem) -> None:
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
