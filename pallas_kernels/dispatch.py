"""The choice between the implementations of an op, and the gradient of kernels that have none of their own.

An op is a table of implementations by name, fastest first; the last one runs everywhere. All ops choose in the same way
and refuse in the same words.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from pallas_kernels import devices

ImplementationName = Literal["pallas", "xla"]
"""Names of the implementations of an op that has one kernel and its plain-JAX reference."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementation[**Arguments, Result]:
    """One way to compute an op.

    Attributes:
        run: Computes the op.
        operand_obstacle: Takes the arguments of ``run``; says why it cannot compute them, or ``None`` if it can.
        device_obstacle: Says why it cannot run on the default device under the current mesh, or ``None`` if it can.
    """

    run: Callable[Arguments, Result]
    operand_obstacle: Callable[Arguments, str | None] = lambda *_, **__: None
    device_obstacle: Callable[[], str | None] = lambda: None

    def obstacle(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> str | None:
        """Why the implementation cannot run with these arguments here; ``None`` if it can."""
        return self.operand_obstacle(*args, **kwargs) or self.device_obstacle()


@dataclasses.dataclass(frozen=True)
class Op[**Arguments, Result]:
    """An op and its implementations.

    Attributes:
        name: Name of the op in error messages.
        implementations: Implementations by name, fastest first. The last one has no obstacles.
    """

    name: str
    implementations: Mapping[str, Implementation[Arguments, Result]]

    def choose(self, implementation: str | None, *args: Arguments.args, **kwargs: Arguments.kwargs) -> str:
        """The name of the implementation that computes the op for these arguments.

        Args:
            implementation: A name, or ``None`` for the first implementation that can run.
            *args: Arguments of the op.
            **kwargs: Further arguments of the op.

        Raises:
            ValueError: There is no implementation of this name.
            NotImplementedError: The implementation of this name cannot run.
        """
        if implementation is None:
            runnable = (name for name, way in self.implementations.items() if way.obstacle(*args, **kwargs) is None)
            return next(runnable)
        if implementation not in self.implementations:
            names = ", ".join(map(repr, self.implementations))
            raise ValueError(f"unknown {self.name} implementation {implementation!r}; expected {names} or None")
        if reason := self.implementations[implementation].obstacle(*args, **kwargs):
            raise NotImplementedError(
                f"{self.name} with implementation={implementation!r} cannot run: {reason}; implementation=None takes "
                "the fastest that can"
            )
        return implementation

    def run(self, implementation: str | None, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Computes the op with the implementation that :meth:`choose` names; raises what it raises."""
        return self.implementations[self.choose(implementation, *args, **kwargs)].run(*args, **kwargs)


def hopper_obstacle() -> str | None:
    """Why a Hopper kernel cannot run on the default device under the current mesh; ``None`` if it can."""
    if not devices.is_hopper():
        return "it needs a GPU of compute capability 9.0 as the default device"
    if devices.compiler_splits_work():
        return "XLA cannot divide a kernel among the devices of a mesh; call it inside jax.shard_map"
    return None


def with_reference_gradient[Result](
    forward: Callable[..., Result], reference: Callable[..., Result]
) -> Callable[..., Result]:
    """``forward``, with the gradient of ``reference``.

    The backward pass keeps only the operands and lets XLA compute the gradient of the reference from them: XLA fuses
    that into few passes, and recomputing the statistics of a norm costs less than reading them.

    Args:
        forward: Takes operands (arrays or ``None``) by position and hashable settings by keyword.
        reference: Computes the same from the same arguments, in plain JAX.

    Returns:
        A function of the arguments of ``forward``, differentiable in all operands.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def run(settings: tuple[tuple[str, Any], ...], *operands: Any) -> Result:
        return forward(*operands, **dict(settings))

    def run_and_keep_operands(settings: tuple[tuple[str, Any], ...], *operands: Any) -> tuple[Result, tuple[Any, ...]]:
        return run(settings, *operands), operands

    def gradient(settings: tuple[tuple[str, Any], ...], operands: tuple[Any, ...], cotangents: Any) -> tuple[Any, ...]:
        return jax.vjp(functools.partial(reference, **dict(settings)), *operands)[1](cotangents)

    run.defvjp(run_and_keep_operands, gradient)

    @functools.wraps(forward)
    def differentiable(*operands: Any, **settings: Any) -> Result:
        return run(tuple(sorted(settings.items())), *operands)

    return differentiable
