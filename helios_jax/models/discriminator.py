"""The discriminator: small convolutional heads that read a denoiser, one on its velocity, others on its hidden states.

Every head reduces a grid of features to one logit per sample:

    h_0     = velocity [T, h, w, C], or the residual stream after a block as a grid [T, h/2, w/2, D]
    h_(i+1) = SiLU(GroupNorm(conv_i(h_i)))              i = 0 ... 5                                        (1)
    logit   = w . mean over the grid of h_6 + b                                                            (2)

A high logit means "generated". Parameters, norms and logits are fp32, and the convolutions run in the compute dtype.
Logits in bf16 would put a floor under the approximate R1 penalty (``helios_jax.distillation.gan``), which squares small
differences of them.

Heads are computed again in the backward pass. All hook heads have equal shapes, so they are stacked and run one after
the other in a scan, which compiles one of them. Every array with more than 0.1 % of the parameters has an axis of
``width`` or of input channels, by which ``helios_jax.training.sharding.state_shardings`` divides it over fsdp.

Source: arXiv 2603.04379. Initial values are those of PyTorch's layers: kernels and biases are uniform in
+-1/sqrt(inputs of one output), scales are ones.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.models.layers import matmul_precision, stack_layers
from helios_jax.models.network import ConfiguredModule
from helios_jax.typing import Array, DType, Float
from helios_jax.user_input import whole_number, yes_or_no

Triple = tuple[int, int, int]
"""Along frames, rows and columns."""

_CONVOLUTIONS: tuple[tuple[Triple, Triple, Triple], ...] = (
    ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((4, 4, 4), (2, 2, 2), (1, 1, 1)),
    ((4, 4, 4), (2, 2, 2), (1, 1, 1)),
    ((3, 3, 3), (2, 1, 1), (1, 1, 1)),
    ((3, 3, 3), (2, 1, 1), (1, 1, 1)),
    ((1, 3, 3), (1, 1, 1), (0, 1, 1)),
)
"""Window, stride and zero padding of every convolution in (1)."""

_EPS = 1e-5
"""Epsilon of the norms, PyTorch's default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of a discriminator.

    Attributes:
        hooks: Blocks of the denoiser, from 0, whose output a head reads; increasing.
        width: Channels of every convolution.
        groups: Groups of every GroupNorm.
        final: Whether a head reads the velocity.
    """

    hooks: tuple[int, ...] = (5, 15, 25, 35)
    width: int = 768
    groups: int = 32
    final: bool = True

    def __post_init__(self) -> None:
        for hook in self.hooks:
            whole_number(hook, "discriminator.hooks", at_least=0)
        if list(self.hooks) != sorted(set(self.hooks)):
            raise ValueError(f"discriminator.hooks={self.hooks} must be increasing numbers of blocks")
        whole_number(self.width, "discriminator.width", at_least=2)
        whole_number(self.groups, "discriminator.groups", at_least=1)
        # A group of one channel would be normalised to zero where the grid has shrunk to one position.
        if self.width % self.groups or self.width == self.groups:
            raise ValueError(
                f"discriminator.width={self.width} must be a multiple of groups={self.groups}, and at least twice that"
            )
        if not yes_or_no(self.final, "discriminator.final") and not self.hooks:
            raise ValueError("a discriminator needs a head: give hooks, or set final")

    @property
    def num_logits(self) -> int:
        """Heads."""
        return len(self.hooks) + self.final

    def check_hooks(self, num_layers: int) -> None:
        """Raises ValueError unless a denoiser of ``num_layers`` blocks has all blocks that are hooked."""
        if self.hooks and self.hooks[-1] >= num_layers:
            raise ValueError(
                f"discriminator.hooks={self.hooks} given; the denoiser has only blocks 0 to {num_layers - 1}"
            )

    def check_size(self, frames: int, height: int, width: int, patch: Triple) -> None:
        """Raises ValueError unless all heads can read latents of this size.

        Args:
            frames: Latent frames.
            height: Rows of the latents that the denoiser reads, after cropping.
            width: Their columns.
            patch: Patch of the denoiser's current tokens.
        """
        size = (frames, height, width)
        if self.final:
            head_sizes(size)
        if self.hooks:
            head_sizes(tuple(side // step for side, step in zip(size, patch, strict=True)))


def head_sizes(size: Sequence[int]) -> tuple[Triple, ...]:
    """The grid (frames, rows, columns) after every convolution of a head whose input has ``size``.

    Raises:
        ValueError: A convolution has no output.
    """
    sizes: list[Sequence[int]] = [size]
    for number, (window, stride, padding) in enumerate(_CONVOLUTIONS):
        sides = zip(sizes[-1], window, stride, padding, strict=True)
        sizes.append([(side + 2 * pad - taps) // step + 1 for side, taps, step, pad in sides])
        if min(sizes[-1]) < 1:
            raise ValueError(
                f"a head of the discriminator cannot read {' x '.join(map(str, size))} positions (frames x rows x "
                f"columns): convolution {number + 1} of {len(_CONVOLUTIONS)} has no output; at least 4 x 4 x 4 are "
                "needed, so take a larger crop or larger videos"
            )
    return tuple((frames, rows, columns) for frames, rows, columns in sizes[1:])


class Head(nnx.Module):
    """One head, equations (1) and (2): from a grid of features to one logit.

    Args:
        features: Channels of the grid.
        width: Channels of the convolutions.
        groups: Groups of the norms.
        dtype: Compute dtype of the convolutions.
        rngs: Key stream ``params``.
    """

    def __init__(self, features: int, width: int, groups: int, *, dtype: DType, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List(
            nnx.Conv(
                features if number == 0 else width,
                width,
                window,
                strides=stride,
                padding=[(pad, pad) for pad in padding],
                dtype=dtype,
                param_dtype=jnp.float32,
                precision=matmul_precision(dtype),
                kernel_init=_uniform(math.prod(window) * (features if number == 0 else width)),
                bias_init=_uniform(math.prod(window) * (features if number == 0 else width)),
                rngs=rngs,
            )
            for number, (window, stride, padding) in enumerate(_CONVOLUTIONS)
        )
        self.norms = nnx.List(
            nnx.GroupNorm(width, groups, epsilon=_EPS, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)
            for _ in _CONVOLUTIONS
        )
        self.logit = nnx.Linear(
            width,
            1,
            dtype=jnp.float32,
            param_dtype=jnp.float32,
            precision=jax.lax.Precision.HIGHEST,
            kernel_init=_uniform(width),
            bias_init=_uniform(width),
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, " B"]:
        """The logit of every sample.

        Raises:
            ValueError: A convolution has no output.
        """
        head_sizes(x.shape[1:4])
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.silu(norm(conv(x).astype(jnp.float32)))
        return self.logit(x.mean((1, 2, 3)))[:, 0]


class Discriminator(ConfiguredModule):
    """All heads.

    Args:
        config: Sizes.
        hidden_dim: Model dimension of the denoiser.
        channels: Channels of its velocity.
        dtype: Compute dtype of the convolutions.
        rngs: Source of the initial parameters, which are fp32.
    """

    def __init__(
        self,
        config: DiscriminatorConfig,
        hidden_dim: int,
        channels: int,
        *,
        dtype: DType = jnp.bfloat16,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.dtype = jnp.dtype(dtype)
        width, groups = config.width, config.groups
        if config.final:
            self.final = Head(channels, width, groups, dtype=self.dtype, rngs=rngs)
        if config.hooks:
            self.hooks = stack_layers(
                lambda rngs: Head(hidden_dim, width, groups, dtype=self.dtype, rngs=rngs), len(config.hooks), rngs
            )

    def __call__(
        self, velocity: Float[Array, "B T h w C"], hidden: Float[Array, "heads B T H W D"] | None
    ) -> Float[Array, "B logits"]:
        """The logits of every sample in fp32: of the velocity if ``config.final``, then of the hooks in their order.

        Args:
            velocity: What the denoiser predicts.
            hidden: Its residual streams after the blocks ``config.hooks``, as grids; ``None`` without hooks.

        Raises:
            ValueError: The number of streams is not that of the hooks, or a convolution has no output.
        """
        given = 0 if hidden is None else len(hidden)
        if given != len(self.config.hooks):
            raise ValueError(f"{given} hidden states given; the discriminator reads blocks {self.config.hooks}")
        logits = []
        if self.config.final:
            graph, state = nnx.split(self.final)
            logits.append(jax.checkpoint(lambda state, x: nnx.merge(graph, state)(x))(state, velocity)[None])
        if self.config.hooks:
            graph, state = nnx.split(self.hooks)

            def run(_: None, one: tuple[nnx.State, Array]) -> tuple[None, Array]:
                head, x = one
                return None, nnx.merge(graph, head)(x)

            # A scan keeps originals and recomputed values apart by itself; see ``parallel.memory``.
            logits.append(jax.lax.scan(jax.checkpoint(run, prevent_cse=False), None, (state, hidden))[1])
        return jnp.concatenate(logits).T


def _uniform(inputs: int) -> nnx.initializers.Initializer:
    """Uniform in +-1/sqrt(inputs)."""

    def init(key: Array, shape: Sequence[int], dtype: DType = jnp.float32) -> Array:
        bound = inputs**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
