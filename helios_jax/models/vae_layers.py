"""Layers of the causal video VAE of Wan2.1 (``AutoencoderKLWan`` of diffusers).

A layer maps one slice of a clip and the layer's memory of the frames before it:

    (slice, cache) -> (slice, cache).                                                           (1)

``cache = None`` starts a clip. Chaining (1) over the slices of a clip equals one call on the whole
clip, because every layer is causal: its cache holds all of the past that it will read again. A cache
is a pytree of arrays whose shapes do not change after the first slice, so it can be the carry of
``jax.lax.scan``.

Convolutions over time are written as convolutions over space. With x_t = 0 for t < 0 and the taps K_0,
K_1, K_2 of a causal kernel,

    y_t = K_0 * x_{t-2} + K_1 * x_{t-1} + K_2 * x_t = [K_0; K_1; K_2] * [x_{t-2}, x_{t-1}, x_t],   (2)

one two-dimensional convolution whose input is three shifted copies of the clip side by side on the
channels. It fills the tensor cores better than a three-dimensional one, and frames are independent of
each other once the copies have been gathered.

Doubling rows and columns by repetition before a 3x3 convolution computes each product up to four times. Row 2i of
the result sees rows i-1, i, i of the small image, row 2i+1 sees i, i, i+1. So, with k_0, k_1, k_2 the kernel's rows,

    y_{2i} = k_0 x_{i-1} + (k_1 + k_2) x_i,      y_{2i+1} = (k_0 + k_1) x_i + k_2 x_{i+1},       (3)

and likewise for columns: one 2x2 convolution of the small image with four times the channels, 16 products, not 36.

Two frames at once take four convolutions over space, applied to sums of frames, instead of six:

    y_t = m_0 + m_1 + m_2,   y_(t+1) = m_1 - m_2 - m_3,                                         (4)
    m_0 = K_0 * (x_{t-2} - x_t),                        m_1 = (K_0 + K_1 + K_2) / 2 * (x_{t-1} + x_t),
    m_2 = (K_0 - K_1 + K_2) / 2 * (x_t - x_{t-1}),      m_3 = K_2 * (x_{t-1} - x_{t+1})

(Winograd's F(2, 3), arXiv 1509.09308).

The first frame of a clip is special to the layers that change the frame rate: it is one frame at
every rate, so it bypasses their time convolutions.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from helios_jax.typing import Array, DType, Float
from pallas_kernels.norm_silu_pairs import norm_silu_pairs, runs_as_kernel

_FEW_OUTPUTS, _COLUMNS_AT_ONCE = 4, 4
"""A convolution with at most ``_FEW_OUTPUTS`` outputs computes ``_COLUMNS_AT_ONCE`` columns at once."""

Cache = Any
"""A layer's memory of earlier frames: ``None``, an array or a tuple of caches."""


@runtime_checkable
class CausalLayer(Protocol):
    """A map (1) from a slice of a clip to a slice of its features."""

    def __call__(self, x: Float[Array, "B T H W C"], cache: Cache) -> tuple[Float[Array, "B T2 H2 W2 C2"], Cache]: ...


def chain(
    layers: Iterable[CausalLayer], x: Float[Array, "B T H W C"], cache: Cache
) -> tuple[Float[Array, "B T2 H2 W2 C2"], Cache]:
    """Applies layers one after the other; the cache is the tuple of their caches."""
    layers = tuple(layers)
    caches = []
    for layer, past in zip(layers, cache or (None,) * len(layers), strict=True):
        x, past = layer(x, past)
        caches.append(past)
    return x, tuple(caches)


def per_frame(
    fn: Callable[..., Float[Array, "images H2 W2 C2"]], *clips: Float[Array, "B T _ _ _"]
) -> Float[Array, "B T H2 W2 C2"]:
    """Applies a function of images to the frames of clips: all at once on accelerators, one by one on a CPU.

    The CPU's sums and matrix products round differently for different numbers of rows. With one
    frame at a time, a frame's value depends neither on how many others share the call nor on the slicing.
    Inside ``frames_together`` CPUs also take all frames at once.
    """
    frames = [clip.reshape(-1, *clip.shape[2:]) for clip in clips]
    if _together.get():
        y = fn(*frames)
    else:
        y = jax.lax.platform_dependent(*frames, cpu=functools.partial(one_by_one, fn), default=fn)
    return y.reshape(*clips[0].shape[:2], *y.shape[1:])


@contextlib.contextmanager
def frames_together() -> Iterator[None]:
    """Takes all frames at once on CPUs too, and stills without the zeros before them; for training.

    On a CPU this is several times as fast, but the last bits of values then depend on the slicing.
    """
    token = _together.set(True)
    try:
        yield
    finally:
        _together.reset(token)


_together = contextvars.ContextVar("frames_together", default=False)


def one_by_one(
    fn: Callable[..., Float[Array, "1 H2 W2 C2"]], *frames: Float[Array, "images _ _ _"]
) -> Float[Array, "images H2 W2 C2"]:
    """Applies a function of images to one frame after the other."""
    return jax.lax.map(lambda ones: fn(*(one[None] for one in ones))[0], frames)


class Conv(nnx.Module):
    """A convolution over frames; with several taps, over that many frames at once, equation (2).

    Args:
        window: Sides of the kernel: (), (rows, columns), (taps,) or (taps, rows, columns).
        in_features: Channels of one frame.
        out_features: Channels of the result.
        stride: Step along rows and columns.
        padding: Zeros around rows and columns, as in ``jax.lax.conv_general_dilated``.
        dtype: Compute dtype.
        param_dtype: Dtype of kernel [*window, in, out] and bias [out].
        precision: Precision of the products; ``None`` is the default of the hardware.
        rngs: Key stream ``params``.
    """

    def __init__(
        self,
        window: tuple[int, ...],
        in_features: int,
        out_features: int,
        *,
        stride: int = 1,
        padding: str | tuple[tuple[int, int], tuple[int, int]] = "SAME",
        dtype: DType,
        param_dtype: DType,
        precision: jax.lax.Precision | None,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride = stride
        self.padding = padding
        self.dtype = dtype
        self.precision = precision
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (*window, in_features, out_features), param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype))

    def over(
        self, *taps: Float[Array, "B T H W C"], shortcut: Float[Array, "B T H2 W2 C2"] | None = None
    ) -> Float[Array, "B T H2 W2 C2"]:
        """Convolves the frames of ``taps``, one array per tap, earliest first, and adds ``shortcut``."""
        kernel = self.kernel[...].astype(self.dtype)
        if len(taps) > 1:
            kernel = taps_to_channels(kernel)
        return self._convolve(jnp.concatenate(taps, -1), kernel, shortcut)

    def _convolve(
        self,
        x: Float[Array, "B T H W C"],
        kernel: Float[Array, "*window C C2"],
        shortcut: Float[Array, "B T H2 W2 C2"] | None = None,
        *,
        with_bias: bool = True,
    ) -> Float[Array, "B T H2 W2 C2"]:
        def convolve(x: Float[Array, "images H W C"]) -> Float[Array, "images H2 W2 C2"]:
            if kernel.ndim == 2:
                return jnp.matmul(x, kernel, precision=self.precision)
            return conv2d(x, kernel, (self.stride, self.stride), self.padding, self.precision)

        def convolve_to_few(x: Float[Array, "images H W C"]) -> Float[Array, "images H W C2"]:
            wide = several_columns(kernel, _COLUMNS_AT_ONCE)
            y = conv2d(x, wide, (1, _COLUMNS_AT_ONCE), ((1, 1), (1, 1)), self.precision)
            return y.reshape(*x.shape[:3], -1)

        plain = kernel.shape[:-2] == (3, 3) and self.stride == 1 and self.padding == "SAME"
        few = kernel.shape[-1] <= _FEW_OUTPUTS and x.shape[3] % _COLUMNS_AT_ONCE == 0
        convolve = convolve_to_few if plain and few else convolve

        # The sum is computed on images, like the convolution, which lets XLA fuse both into one pass.
        def convolve_and_add(x: Float[Array, "images H W C"], *shortcut: Float[Array, "images H2 W2 C2"]) -> Array:
            y = convolve(x)
            return sum(shortcut, y + self.bias[...].astype(self.dtype) if with_bias else y)

        return per_frame(convolve_and_add, x, *([] if shortcut is None else [shortcut]))


def conv2d(
    x: Float[Array, "images H W C"],
    kernel: Float[Array, "rows columns C C2"],
    strides: tuple[int, int],
    padding: str | tuple[tuple[int, int], tuple[int, int]],
    precision: jax.lax.Precision | None,
) -> Float[Array, "images H2 W2 C2"]:
    """Convolves images."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout, precision=precision)


def several_columns(kernel: Float[Array, "rows columns C C2"], count: int) -> Float[Array, "rows columns2 C C3"]:
    """The kernel that computes ``count`` columns of the result at once, side by side on the channels.

    Images have 3 channels; a tensor-core tile has many more output columns, which 3 outputs would leave idle. The wider
    kernel computes some products with zeros, but far fewer than the idle columns would.
    """
    shifted = [jnp.pad(kernel, ((0, 0), (i, count - 1 - i), (0, 0), (0, 0))) for i in range(count)]
    return jnp.concatenate(shifted, axis=-1)


def taps_to_channels(kernel: Float[Array, "taps *window C C2"]) -> Float[Array, "*window C3 C2"]:
    """The kernel of equation (2)."""
    kernel = jnp.moveaxis(kernel, 0, -3)
    return kernel.reshape(*kernel.shape[:-3], -1, kernel.shape[-1])


class CausalConv(Conv):
    """A convolution over a frame and the two before it; zeros precede a clip. Cache: the last two frames."""

    def __call__(
        self, x: Float[Array, "B T H W C"], cache: Cache, shortcut: Float[Array, "B T H W C2"] | None = None
    ) -> tuple[Float[Array, "B T H W C2"], Cache]:
        b, frames, *rest = x.shape
        past = jnp.zeros((b, 2, *rest), x.dtype) if cache is None else cache
        if cache is None and frames == 1 and _together.get():  # a third of the products, with other roundings
            still = self._convolve(x, self.kernel[...][-1].astype(self.dtype), shortcut)
            return still, jnp.concatenate([past[:, 1:], x], 1)
        x = jnp.concatenate([past, x], 1)
        return self.over(x[:, :-2], x[:, 1:-1], x[:, 2:], shortcut=shortcut), x[:, -2:]

    def after_norm(
        self,
        norm: "RmsNorm",
        x: Float[Array, "B T H W C"],
        cache: Cache,
        shortcut: Float[Array, "B T H W C2"] | None = None,
    ) -> tuple[Float[Array, "B T H W C2"], Cache]:
        """Convolves SiLU(norm(x)) and adds ``shortcut``; where a kernel runs, two frames of a clip at once."""
        gamma = norm.gamma[...]
        if cache is not None or not runs_as_kernel(x, gamma):
            return self(jax.nn.silu(norm(x)), cache, shortcut)
        y = self._in_pairs(norm_silu_pairs(x, gamma), x.shape[1], shortcut)
        past = jax.nn.silu(norm(x[:, -2:]))
        return y, jnp.pad(past, ((0, 0), (max(0, 2 - x.shape[1]), 0), *[(0, 0)] * 3))

    def _in_pairs(
        self, sums: Sequence[Float[Array, "B pairs H W C"]], frames: int, shortcut: Float[Array, "B T H W C2"] | None
    ) -> Float[Array, "B T H W C2"]:
        """Convolves with four products for every two frames, equation (4), and adds ``shortcut``.

        Args:
            sums: From ``norm_silu_pairs``.
            frames: Frames of the clip.
            shortcut: What to add.
        """
        first, middle, last = self.kernel[...].astype(jnp.float32)
        kernels = (first, (first + middle + last) / 2, (first - middle + last) / 2, last)
        # Only the second product has the bias, since it enters both results with a plus sign.
        m0, m1, m2, m3 = (
            self._convolve(d, kernel.astype(self.dtype), with_bias=number == 1).astype(jnp.float32)
            for number, (d, kernel) in enumerate(zip(sums, kernels, strict=True))
        )
        results = [m0 + m1 + m2, m1 - m2 - m3]
        if shortcut is not None:
            whole = jnp.pad(shortcut, ((0, 0), (0, 2 * m0.shape[1] - frames), *[(0, 0)] * 3))
            pairs = whole.reshape(*m0.shape[:2], 2, *m0.shape[2:]).astype(jnp.float32)
            results = [result + pairs[:, :, place] for place, result in enumerate(results)]
        z = jnp.stack(results, axis=2).astype(self.dtype)
        # Without this barrier XLA also keeps an fp32 copy of the sum for the next block's residual.
        z = jax.lax.optimization_barrier(z)
        return z.reshape(z.shape[0], -1, *z.shape[3:])[:, :frames]


class RmsNorm(nnx.Module):
    """x / max(|x|, 1e-12) sqrt(C) gamma over the channels: fp32 inside, dtype of ``x`` outside."""

    def __init__(self, features: int, *, param_dtype: DType) -> None:
        self.gamma = nnx.Param(jnp.ones((features,), param_dtype))

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        scale = x.shape[-1] ** 0.5 * self.gamma[...].astype(jnp.float32)

        def normalize(x: Float[Array, "images H W C"]) -> Float[Array, "images H W C"]:
            x32 = x.astype(jnp.float32)
            length = jnp.sqrt((x32 * x32).sum(-1, keepdims=True))
            return (x32 / jnp.maximum(length, 1e-12) * scale).astype(x.dtype)

        return per_frame(normalize, x)


class ResidualBlock(nnx.Module):
    """shortcut(x) + conv2(SiLU(norm2(conv1(SiLU(norm1(x)))))); the shortcut is a matrix if channels change."""

    def __init__(self, in_features: int, out_features: int, **numerics: Any) -> None:
        self.norm1 = RmsNorm(in_features, param_dtype=numerics["param_dtype"])
        self.conv1 = CausalConv((3, 3, 3), in_features, out_features, **numerics)
        self.norm2 = RmsNorm(out_features, param_dtype=numerics["param_dtype"])
        self.conv2 = CausalConv((3, 3, 3), out_features, out_features, **numerics)
        if in_features != out_features:
            self.conv_shortcut = Conv((), in_features, out_features, **numerics)
        else:
            self.conv_shortcut = None

    def __call__(self, x: Float[Array, "B T H W C"], cache: Cache) -> tuple[Float[Array, "B T H W C2"], Cache]:
        past1, past2 = cache or (None, None)
        h, past1 = self.conv1.after_norm(self.norm1, x, past1)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut.over(x)
        h, past2 = self.conv2.after_norm(self.norm2, h, past2, shortcut)
        return h, (past1, past2)


class AttentionBlock(nnx.Module):
    """Single-head self-attention among the pixels of one frame, with a residual. No cache."""

    def __init__(self, features: int, **numerics: Any) -> None:
        self.precision = numerics["precision"]
        self.norm = RmsNorm(features, param_dtype=numerics["param_dtype"])
        self.to_qkv = Conv((), features, 3 * features, **numerics)
        self.proj = Conv((), features, features, **numerics)

    def __call__(self, x: Float[Array, "B T H W C"], cache: Cache) -> tuple[Float[Array, "B T H W C"], Cache]:
        def attend(qkv: Float[Array, "1 H W C3"]) -> Float[Array, "1 H W C"]:
            q, k, v = jnp.split(qkv.reshape(-1, qkv.shape[-1]), 3, axis=-1)
            scores = jnp.matmul(q, k.T, precision=self.precision, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
            return jnp.matmul(weights, v, precision=self.precision).reshape(*qkv.shape[:-1], -1)

        # One frame after the other on every device: the scores of a single frame are (H W)^2 numbers.
        qkv = self.to_qkv.over(self.norm(x))
        frames = one_by_one(attend, qkv.reshape(-1, *qkv.shape[2:]))
        return x + self.proj.over(frames.reshape(x.shape)), cache


class Downsample(nnx.Module):
    """Halves rows and columns and, with ``time``, the frames after the first: T -> 1 + (T - 1) / 2.

    Frame j > 0 of the result is a time convolution of frames 2j - 2, 2j - 1 and 2j. Cache: the last frame.
    """

    def __init__(self, features: int, *, time: bool, **numerics: Any) -> None:
        at_the_end = ((0, 1), (0, 1))
        self.resample = Conv((3, 3), features, features, stride=2, padding=at_the_end, **numerics)
        self.time_conv = Conv((3,), features, features, **numerics) if time else None

    def __call__(self, x: Float[Array, "B T H W C"], cache: Cache) -> tuple[Float[Array, "B T2 H2 W2 C"], Cache]:
        x = self.resample.over(x)
        if self.time_conv is None:
            return x, cache
        first = x[:, :1] if cache is None else x[:, :0]
        x = x if cache is None else jnp.concatenate([cache, x], 1)
        rest = self.time_conv.over(x[:, :-2:2], x[:, 1:-1:2], x[:, 2::2])
        return jnp.concatenate([first, rest], 1), x[:, -1:]


class Upsample(nnx.Module):
    """Doubles rows and columns, halves channels and, with ``time``, doubles the frames after the first.

    The time convolution turns every frame after the first into two (T -> 2 T - 1); it sees zeros instead of
    the first frame. Cache: that of the time convolution.
    """

    def __init__(self, features: int, *, time: bool, **numerics: Any) -> None:
        self.resample = Conv((3, 3), features, features // 2, **numerics)
        self.time_conv = CausalConv((3,), features, 2 * features, **numerics) if time else None

    def __call__(self, x: Float[Array, "B T H W C"], cache: Cache) -> tuple[Float[Array, "B T2 H2 W2 C2"], Cache]:
        if self.time_conv is not None:
            first = 1 if cache is None else 0
            pairs, cache = self.time_conv(x[:, first:], cache)
            b, t, h, w, c = pairs.shape
            pairs = pairs.reshape(b, t, h, w, 2, c // 2)  # the first half of the channels is the earlier frame
            doubled = jnp.moveaxis(pairs, 4, 2).reshape(b, 2 * t, h, w, c // 2)
            x = jnp.concatenate([x[:, :first], doubled], 1)
        return self._resample(x), cache

    def _resample(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C2"]:
        """``resample`` of x repeated twice along rows and columns, equation (3)."""
        kernel = self.resample.kernel[...].astype(jnp.float32)
        kernel = jnp.concatenate([half for rows in _halves(kernel, 0) for half in _halves(rows, 1)], axis=-1)
        kernel = kernel.astype(self.resample.dtype)
        h, w = x.shape[2:4]
        features = kernel.shape[-1] // 4

        def convolve(x: Float[Array, "images H W C"]) -> Float[Array, "images H2 W2 C2"]:
            z = conv2d(x, kernel, (1, 1), ((1, 1), (1, 1)), self.resample.precision)
            z = z.reshape(-1, h + 1, w + 1, 4, features)
            rows = [jnp.stack([z[:, a : a + h, c : c + w, 2 * a + c] for c in (0, 1)], axis=3) for a in (0, 1)]
            return jnp.stack(rows, axis=2).reshape(-1, 2 * h, 2 * w, features)

        return per_frame(convolve, x) + self.resample.bias[...].astype(self.resample.dtype)


def _halves(kernel: Float[Array, "..."], axis: int) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The two kernels of length 2 in equation (3), from one of length 3."""
    first, second, third = jnp.unstack(kernel, axis=axis)
    return jnp.stack([first, second + third], axis), jnp.stack([first + second, third], axis)
