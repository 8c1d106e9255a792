"""Classifier-free guidance: combines two predicted velocities, c with the text and u with the negative text.

    (1)  plain:       v = u + g (c - u)
    (2)  CFG-Zero*:   v = a u + g (c - a u),   a = <c, u> / (|u|^2 + 1e-8) per sample
    (3)  zero-init:   v = 0 in the first steps of the first level

(2) and (3) are arXiv 2503.18886. Each product and sum is rounded to the dtype of the velocities, as
diffusers 0.42.1 does; a is computed in fp32. The scale g is a traced scalar, so another value compiles nothing.
Where (3) applies, the caller skips the network.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from helios_jax.config import PipelineConfig
from helios_jax.diffusion.flow import round_to
from helios_jax.typing import Array, DType, Float

Scalar = float | Float[Array, ""]


@runtime_checkable
class Guidance(Protocol):
    """Combines the velocities of the two prompts."""

    def is_zero_init(self, level: int, step: int) -> bool:
        """Whether equation (3) applies: the velocity is 0 and the network need not run. Host side."""
        ...

    def __call__(
        self, cond: Float[Array, "B *shape"], uncond: Float[Array, "B *shape"], scale: Scalar
    ) -> Float[Array, "B *shape"]:
        """The guided velocity.

        Args:
            cond: Velocity predicted with the prompt.
            uncond: Velocity predicted with the negative prompt.
            scale: g.

        Returns:
            The velocity, in the dtype of ``cond``.
        """
        ...


def _extrapolate(
    cond: Float[Array, "B *shape"], uncond: Float[Array, "B *shape"], scale: Scalar, dtype: DType
) -> Float[Array, "B *shape"]:
    """u + g (c - u) of fp32 arrays that hold values of ``dtype``, rounded after each operation."""
    return round_to(uncond + round_to(scale * round_to(cond - uncond, dtype), dtype), dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """Plain guidance, equation (1)."""

    def is_zero_init(self, level: int, step: int) -> bool:
        """False: plain guidance has no zero-init."""
        return False

    def __call__(
        self, cond: Float[Array, "B *shape"], uncond: Float[Array, "B *shape"], scale: Scalar
    ) -> Float[Array, "B *shape"]:
        """The guided velocity, equation (1)."""
        c, u = cond.astype(jnp.float32), uncond.astype(jnp.float32)
        return _extrapolate(c, u, scale, cond.dtype).astype(cond.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CfgZeroStar:
    """CFG-Zero*, equations (2) and (3).

    Attributes:
        zero_steps: Last step of the first level that (3) zeroes, counted from 0: the default of
            diffusers zeroes two steps, -1 zeroes none.
    """

    zero_steps: int = 1

    def is_zero_init(self, level: int, step: int) -> bool:
        """True in steps 0..zero_steps of level 0."""
        return level == 0 and step <= self.zero_steps

    def __call__(
        self, cond: Float[Array, "B *shape"], uncond: Float[Array, "B *shape"], scale: Scalar
    ) -> Float[Array, "B *shape"]:
        """The guided velocity, equation (2)."""
        c, u = cond.astype(jnp.float32), uncond.astype(jnp.float32)
        axes = tuple(range(1, c.ndim))
        projection = (c * u).sum(axes, keepdims=True) / ((u * u).sum(axes, keepdims=True) + 1e-8)
        u = round_to(round_to(projection, cond.dtype) * u, cond.dtype)
        return _extrapolate(c, u, scale, cond.dtype).astype(cond.dtype)


def make_guidance(config: PipelineConfig) -> Guidance:
    """The guidance that ``model_index.json`` asks for."""
    return CfgZeroStar() if config.is_cfg_zero_star else ClassifierFree()
