"""The three implementations of attention, the gradient of the kernel, and what each implementation needs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from pallas_kernels import dispatch
from pallas_kernels.attention.config import choose_config
from pallas_kernels.attention.cudnn import attention_cudnn, attention_cudnn_gradient
from pallas_kernels.attention.xla import attention_xla

Result = tuple[Array, Array | None]
"""Output and, if requested, log-sum-exp."""

_Residuals = tuple[Array, Array, Array, Array, Array]
"""What the gradient needs: q, k, v, the output and its log-sum-exp."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """The arguments of a call that are not arrays; ``attention_packed`` explains them."""

    num_heads: int
    first_heads: tuple[int, int, int]
    scale: float
    kv_length: int
    return_lse: bool
    last_key_count: int = 1
    residual_name: str | None = None


def _select(q: Array, k: Array, v: Array, problem: Problem) -> tuple[Array, Array, Array]:
    """The heads and keys that take part, for implementations that take nothing else."""
    q, k, v = (
        jax.lax.slice_in_dim(x, first, first + problem.num_heads, axis=2)
        for x, first in zip((q, k, v), problem.first_heads, strict=True)
    )
    return q, k[:, : problem.kv_length], v[:, : problem.kv_length]


def _named(result: Result, problem: Problem) -> Result:
    name = problem.residual_name
    return result if name is None else jax.tree.map(lambda array: checkpoint_name(array, name), result)


def _xla(q: Array, k: Array, v: Array, problem: Problem) -> Result:
    out, lse = attention_xla(*_select(q, k, v, problem), scale=problem.scale, last_key_count=problem.last_key_count)
    return _named((out, jax.lax.stop_gradient(lse) if problem.return_lse else None), problem)


def _cudnn(q: Array, k: Array, v: Array, problem: Problem) -> Result:
    return _named((attention_cudnn(*_select(q, k, v, problem), scale=problem.scale), None), problem)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _pallas(q: Array, k: Array, v: Array, problem: Problem) -> Result:
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


def _pallas_forward(q: Array, k: Array, v: Array, problem: Problem) -> tuple[Result, _Residuals]:
    out, lse = _named(_pallas(q, k, v, dataclasses.replace(problem, return_lse=True)), problem)
    assert lse is not None  # it was requested
    return (out, lse if problem.return_lse else None), (q, k, v, out, lse)


def _pallas_backward(problem: Problem, saved: _Residuals, cotangents: Result) -> tuple[Array, Array, Array]:
    """The gradients of q, k and v by cuDNN, or by XLA where a key counts several times.

    cuDNN takes the output and log-sum-exp of the kernel, so the attention is not computed again. No gradient flows
    through the log-sum-exp that the caller gets.
    """
    q, k, v, out, lse = saved
    if problem.last_key_count > 1:
        return jax.vjp(lambda q, k, v: _xla(q, k, v, problem)[0], q, k, v)[1](cotangents[0])
    selected, put_back = jax.vjp(functools.partial(_select, problem=problem), q, k, v)
    return put_back(attention_cudnn_gradient(*selected, out, lse, cotangents[0], scale=problem.scale))


_pallas.defvjp(_pallas_forward, _pallas_backward)


def _pallas_obstacle(q: Array, k: Array, v: Array, problem: Problem) -> str | None:
    """Why the kernel cannot compute the problem; ``None`` if it can."""
    if q.shape[-1] not in (64, 128):
        return f"it needs a head dimension of 64 or 128, got {q.shape[-1]}"
    if problem.scale <= 0:
        return f"it needs a positive scale, got {problem.scale}"
    return _half_precision_obstacle(q)


def _cudnn_obstacle(q: Array, k: Array, v: Array, problem: Problem) -> str | None:
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


OP = dispatch.Op(
    "attention",
    {
        "pallas": dispatch.Implementation(
            run=_pallas, operand_obstacle=_pallas_obstacle, device_obstacle=dispatch.hopper_obstacle
        ),
        "cudnn": dispatch.Implementation(run=_cudnn, operand_obstacle=_cudnn_obstacle, device_obstacle=_gpu_obstacle),
        "xla": dispatch.Implementation(run=_xla),
    },
)
