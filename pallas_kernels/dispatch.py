"""Chooses between a kernel and its plain-JAX reference, in the same way for every element-wise op."""

from typing import Literal

import jax

Implementation = Literal["pallas", "xla"]


def use_pallas(op: str, implementation: Implementation | None, obstacle: str | None) -> bool:
    """Whether ``op`` runs as a Pallas kernel.

    Args:
        op: Name for the error message.
        implementation: ``"pallas"``, ``"xla"`` (the reference), or ``None`` for the kernel where it can run.
        obstacle: Why the kernel cannot take these operands; ``None`` if it can.

    Raises:
        NotImplementedError: The kernel is asked for and cannot run here.
        ValueError: The implementation is unknown.
    """
    if implementation not in (None, "pallas", "xla"):
        raise ValueError(f"unknown {op} implementation {implementation!r}; expected 'pallas', 'xla' or None")
    if implementation == "xla":
        return False
    obstacle = obstacle or _missing_hardware()
    if implementation == "pallas" and obstacle:
        raise NotImplementedError(
            f"{op} with implementation='pallas' cannot run: {obstacle}; implementation=None takes the fastest that can"
        )
    return obstacle is None


def _missing_hardware() -> str | None:
    if jax.default_backend() == "gpu":
        from pallas_kernels import compat

        if compat.compiler_splits_work():
            return SPLIT
        if compat.is_hopper():
            return None
    return "it needs a GPU of compute capability 9.0 as the default device"


SPLIT = "XLA cannot divide a kernel among the devices of a mesh; call it inside jax.shard_map"
"""Why a kernel cannot run under a mesh of several devices."""
