"""The gradient of a rollout in small programs: the host walks back up the levels of ``walk``.

The calls that a gradient reaches (``walk.Visit``) are computed once more, each within its own gradient, from the
highest level down:

    c_top   = the gradient of the loss in the result                                                      (1)
    f(x, w) = x - sigma v(x, t; w)                     the call at the exit of level l                    (2)
    grads  += (df/dw)^T c_l,     c = (df/dx)^T c_l                                                        (3)
    c_(l-1) = (alpha up)^T c   = 4 alpha block_mean(c)          for samples whose exit on level l is 0    (4)

At the published sizes the repeated calls are 13 % of the arithmetic of a generator update. In return no residual
crosses the border of a program, so weights may leave the device between any two of them.

With a loss that also reads the end points of lower levels, c_(l-1) is (4) plus the loss's gradient there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.diffusion.pyramid import block_mean
from helios_jax.distillation.scores import per_sample
from helios_jax.distillation.walk import Route, SplitVelocity, Visit
from helios_jax.typing import AnyArray, Array, Bool, Float


def pull_back[W, F](
    velocity: SplitVelocity[W, F],
    weights: W,
    fixed: F,
    routes: Sequence[Route],
    visits: Sequence[Visit],
    cotangent: Float[Array, "B T H W C"],
    gradients: W,
    *,
    inner: Sequence[Float[Array, "B T _ _ C"]] = (),
    exit_program: Callable[..., Any] | None = None,
) -> W:
    """Adds the gradient of a rollout to ``gradients``, by (1) to (4).

    Args:
        velocity: Calls the network; may differ from the one of ``walk.walk`` in what it computes anew.
        weights: See ``walk.SplitVelocity``.
        fixed: See ``walk.SplitVelocity``.
        routes: See ``walk.walk``.
        visits: From ``walk.walk``.
        cotangent: Gradient of the loss in the result of ``walk.walk``.
        gradients: Sums of the gradients so far; donated.
        inner: Gradient of the loss in the end point of every visit but the last one, for a loss that reads them all
            (``keep_ends`` of ``walk.walk``).
        exit_program: ``exit_vjp``, compiled like ``compiled_exit_vjp``, which is the default.
    """
    exit_program = compiled_exit_vjp if exit_program is None else exit_program
    for number, visit in reversed(list(enumerate(visits))):
        cotangent, gradients = exit_program(velocity, weights, fixed, visit, cotangent, gradients)
        if number > 0:
            transition = routes[0].plans[visit.level].transition
            assert transition is not None, "only the first level has no transition"
            cotangent = lower(cotangent, np.float32(transition[0]), visit.is_first)
            cotangent = cotangent + inner[number - 1] if inner else cotangent
    return gradients


def exit_vjp[W, F](
    velocity: SplitVelocity[W, F],
    weights: W,
    fixed: F,
    visit: Visit,
    cotangent: Float[Array, "B T H W C"],
    gradients: W,
) -> tuple[Float[Array, "B T H W C"], W]:
    """The gradients of the call at an exit, equation (3); the arguments are those of ``pull_back``.

    Returns:
        The gradient in the call's input x, and the sums of the gradients in ``weights``.
    """

    def end_point(weights: W, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        v = velocity(weights, fixed, x, visit.timestep, visit.level).astype(jnp.float32)
        return x - per_sample(visit.sigma) * v

    _, vjp = jax.vjp(end_point, weights, visit.x)
    of_weights, of_x = vjp(cotangent)
    return of_x, jax.tree.map(lambda total, one: total + one.astype(total.dtype), gradients, of_weights)


def compile_exit_vjp(**options: Any) -> Callable[..., Any]:
    """``exit_vjp`` as a program that donates the sums of the gradients; ``options`` are those of ``jax.jit``."""
    return jax.jit(exit_vjp, static_argnums=0, donate_argnums=5, **options)


compiled_exit_vjp = compile_exit_vjp()


@jax.jit
def lower(
    cotangent: Float[Array, "B T H W C"], alpha: Float[AnyArray, ""], passes: Bool[Array, " B"]
) -> Float[Array, "B T H2 W2 C"]:
    """The gradient in the result of the level below, equation (4).

    Args:
        cotangent: Gradient in the start point of a level.
        alpha: The factor of the level's transition.
        passes: The samples whose gradient passes; 0 for the others.
    """
    return jnp.asarray(4 * alpha) * block_mean(jnp.where(per_sample(passes), cotangent, 0.0))
