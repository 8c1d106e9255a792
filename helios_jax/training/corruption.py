"""Frame-aware corruption: damages the past in training, so that sampling tolerates its own errors.

In sampling the history is the model's own output, flaws included. Training therefore corrupts the true history, each
latent frame x on its own (Helios, arXiv 2603.04379, "Easy Anti-Drifting"):

    (1)  noise        x <- (1 - sigma) x + sigma eps           sigma ~ U(0, max_sigma), one per frame
    (2)  blur         x <- up(down(x, r))                      r ~ U(0.9, 1), one per segment
    (3)  saturation   x <- m + s (x - m)                       s around 1, one per segment

m is the mean over the channels at each position. ``corrupt`` leaves a clip unchanged with probability ``clean``;
otherwise it applies (2) with probability ``blur``, and (1) if not. ``saturate`` applies (3) afterwards.

A history is cut into segments with draws of their own. Segments are aligned with the borders of the chunks in the
history. For 19 frames and chunks of 9, oldest first, after the anchor:

    anchor | 1 | 9 | 2 + 7

A zero frame means that there is no past, so it stays zero. The anchor is never saturated.

All draws are kept in one value per sample (``CorruptionDraws``), which is a function of the sample's key alone.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import HistoryConfig
from helios_jax.context import History
from helios_jax.diffusion.flow import interpolate
from helios_jax.typing import Array, Bool, Float, Int, Key, Sequence
from helios_jax.user_input import finite_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segments:
    """How the frames of a clip share draws.

    Attributes:
        lengths: Frames of each segment, in time order.
        windows: Frames of each window, the unit of ``zero_test="window"``; a window consists of whole segments.
    """

    lengths: tuple[int, ...]
    windows: tuple[int, ...]

    @classmethod
    def whole(cls, frames: int) -> "Segments":
        """A single segment, for a chunk."""
        return cls(lengths=(frames,), windows=(frames,))

    @property
    def first_frames(self) -> Int[np.ndarray, " T"]:
        """For each frame, the first frame of its segment."""
        starts = np.cumsum([0, *self.lengths[:-1]])
        return np.repeat(starts, self.lengths)

    @property
    def window_ids(self) -> Int[np.ndarray, " T"]:
        """For each frame, its window."""
        return np.repeat(np.arange(len(self.windows)), self.windows)


def history_segments(layout: HistoryConfig) -> Segments:
    """The segments of a history buffer: the remainder that fills no chunk, whole chunks, the last chunk in two parts.

    The first part of the last chunk is as long as the mid tier, as published.
    """
    chunk, mid = layout.chunk_frames, layout.sizes[1]
    count, tail = divmod(layout.buffer_frames, chunk)
    lengths = [tail, *[chunk] * count]
    if count and mid < chunk:
        lengths[-1:] = [mid, chunk - mid]
    return Segments(lengths=_nonzero(lengths), windows=_nonzero([tail, *[chunk] * count]))


def _nonzero(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(length for length in lengths if length)


def _after_anchor(segments: Segments) -> Segments:
    return Segments(lengths=(1, *segments.lengths), windows=(1, *segments.windows))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CorruptionDraws:
    """Everything random about ``corrupt``. Draws per segment are read at the segment's first frame.

    Attributes:
        clean: U(0,1); below ``Corruption.clean`` the clip is left unchanged.
        mode: U(0,1); below ``Corruption.blur`` the clip is blurred.
        sigma: U(0,1), determines the noise level of each frame.
        scale: U(0,1), determines the intermediate size of each blurred segment.
        noise: Standard normal.
    """

    clean: Float[Array, "*B"]
    mode: Float[Array, "*B"]
    sigma: Float[Array, "*B T"]
    scale: Float[Array, "*B T"]
    noise: Float[Array, "*B T H W C"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruption:
    """Noise or blur, equations (1) and (2).

    Attributes:
        clean: Probability that a clip is left unchanged.
        blur: Probability that any other clip is blurred rather than noised.
        max_sigma: Upper end of the noise levels.
        sigma_per: "frame" or "segment": what a noise level is drawn for.
        blur_scale: Range of the relative size that blurred frames are reduced to.
        zero_test: Which frames stay zero: "frame", every zero frame; "window", only frames of windows that are
            entirely zero, as published. Noise then also reaches zero frames next to real ones, which never happens in
            sampling.
    """

    clean: float = 0.1
    blur: float = 0.1
    max_sigma: float = 1 / 3
    sigma_per: Literal["frame", "segment"] = "frame"
    blur_scale: tuple[float, float] = (0.9, 1.0)
    zero_test: Literal["frame", "window"] = "frame"

    def __post_init__(self) -> None:
        check_probabilities(self, "clean", "blur")
        finite_number(self.max_sigma, "max_sigma", at_least=0, at_most=1)
        check_range(self, "blur_scale", at_least=0, at_most=1)
        if not self.blur_scale[0]:
            raise ValueError(f"blur_scale={self.blur_scale} must begin above 0")
        if self.sigma_per not in ("frame", "segment"):
            raise ValueError(f"sigma_per {self.sigma_per!r} must be 'frame' or 'segment'")
        if self.zero_test not in ("frame", "window"):
            raise ValueError(f"zero_test {self.zero_test!r} must be 'frame' or 'window'")

    @classmethod
    def published(cls) -> "Corruption":
        """Settings of the released Base and Mid: noise alone, over windows."""
        return cls(blur=0.0, zero_test="window")

    @staticmethod
    def draw(key: Key[Array, ""], shape: Sequence[int]) -> CorruptionDraws:
        """The draws for one clip of ``shape`` [T, H, W, C]."""
        uniform, noise = jax.random.split(key)
        frames = shape[0]
        u = jax.random.uniform(uniform, (2 + 2 * frames,))
        return CorruptionDraws(
            clean=u[0],
            mode=u[1],
            sigma=u[2 : 2 + frames],
            scale=u[2 + frames :],
            noise=jax.random.normal(noise, tuple(shape)),
        )


def corrupt(
    x: Float[Array, "B T H W C"], draws: CorruptionDraws, config: Corruption, segments: Segments
) -> Float[Array, "B T H W C"]:
    """Adds noise to clips or blurs them, equations (1) and (2); fp32 in, fp32 out.

    Args:
        x: Latents in model space.
        draws: One set per sample.
        config: Strength and probabilities.
        segments: Which of the T frames share draws.
    """
    first = segments.first_frames
    clean, mode, scale = draws.clean, draws.mode, draws.scale[:, first]
    sigma = config.max_sigma * (draws.sigma if config.sigma_per == "frame" else draws.sigma[:, first])
    low, high = config.blur_scale

    noisy = interpolate(draws.noise, x, _per_frame(sigma))
    blurred = blur(x, low + (high - low) * scale)
    changed = jnp.where(_per_frame(mode[:, None]) < config.blur, blurred, noisy)
    touched = _present(x, config, segments) & (clean[:, None] >= config.clean)
    return jnp.where(_per_frame(touched), changed, x)


def corrupt_history(history: History, draws: CorruptionDraws, config: Corruption, layout: HistoryConfig) -> History:
    """Applies ``corrupt`` to a history; frame 0 of the draws is for the anchor, which is a segment of its own."""
    clip = jnp.concatenate([history.anchor, history.frames], axis=1)
    clip = corrupt(clip, draws, config, _after_anchor(history_segments(layout)))
    return History(anchor=clip[:, :1], frames=clip[:, 1:])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SaturationDraws:
    """Everything random about ``saturate``, read at each segment's first frame.

    Attributes:
        clean: U(0,1); below ``Saturation.clean`` the segment is left unchanged.
        side: U(0,1); below 1/2 the segment becomes paler, else more saturated.
        strength: U(0,1), determines the factor within the range of that side.
    """

    clean: Float[Array, "*B T"]
    side: Float[Array, "*B T"]
    strength: Float[Array, "*B T"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saturation:
    """Colour shifts, equation (3).

    Attributes:
        clean: Probability that a segment is left unchanged.
        pale: Range of the factors below 1.
        strong: Range of the factors above 1; both ranges are equally likely.
    """

    clean: float = 0.1
    pale: tuple[float, float] = (0.3, 0.999)
    strong: tuple[float, float] = (1.001, 1.7)

    def __post_init__(self) -> None:
        check_probabilities(self, "clean")
        check_range(self, "pale", at_least=0, at_most=1)
        check_range(self, "strong", at_least=1)

    @staticmethod
    def draw(key: Key[Array, ""], frames: int) -> SaturationDraws:
        """The draws for one clip."""
        clean, side, strength = jax.random.uniform(key, (3, frames))
        return SaturationDraws(clean=clean, side=side, strength=strength)


def saturate(
    x: Float[Array, "B T H W C"], draws: SaturationDraws, config: Saturation, segments: Segments
) -> Float[Array, "B T H W C"]:
    """Shifts the colours of clips, equation (3); zero frames stay zero."""
    first = segments.first_frames
    clean, side, strength = (u[:, first] for u in (draws.clean, draws.side, draws.strength))
    (low, high), (low2, high2) = config.pale, config.strong
    factor = jnp.where(side < 0.5, low + (high - low) * strength, low2 + (high2 - low2) * strength)
    factor = _per_frame(jnp.where(clean < config.clean, 1.0, factor))
    mean = x.mean(-1, keepdims=True)
    return jnp.where(factor == 1.0, x, mean + factor * (x - mean))


def saturate_history(history: History, draws: SaturationDraws, config: Saturation, layout: HistoryConfig) -> History:
    """Applies ``saturate`` to the frames of a history. The anchor keeps its colours, as a reference for the others."""
    return dataclasses.replace(history, frames=saturate(history.frames, draws, config, history_segments(layout)))


def blur(x: Float[Array, "B T H W C"], scale: Float[Array, "B T"]) -> Float[Array, "B T H W C"]:
    """Resizes every frame to round(scale H) x round(scale W), at least 1, and back, equation (2).

    Bilinear with antialiasing, half-pixel centres. Both resizes together are one matrix per axis, because
    the size is random and array shapes are not.
    """
    matrix = jax.vmap(jax.vmap(_through, (None, 0)), (None, 0))
    rows, columns = matrix(x.shape[2], scale), matrix(x.shape[3], scale)
    precision = jax.lax.Precision.HIGHEST
    x = jnp.einsum("bthi,btiwc->bthwc", rows, x, precision=precision)
    return jnp.einsum("btwi,bthic->bthwc", columns, x, precision=precision)


def _through(size: int, scale: Float[Array, ""]) -> Float[Array, "size size"]:
    """The matrix that takes ``size`` pixels to round(scale size) and back; scale is at most 1.

    A small and a large pixel overlap by a hat function of their distance in small pixels. Normalised over large pixels,
    the overlaps shrink with antialiasing; normalised over small pixels, they enlarge.
    """
    small = jnp.maximum(jnp.round(scale * size), 1)
    pixel = jnp.arange(size)
    centre = 2 * pixel + 1
    # The distance times 2 * size is an integer, so the numerator is exact.
    distance = (small * centre - size * centre[:, None]) / (2 * size)
    hat = jnp.maximum(1 - jnp.abs(distance), 0) * (pixel < small)[:, None]
    down = hat / jnp.maximum(hat.sum(1, keepdims=True), jnp.finfo(hat.dtype).tiny)  # of pixels >= small, all zero
    up = hat / hat.sum(0)
    return jnp.matmul(up.T, down, precision=jax.lax.Precision.HIGHEST)


def _present(x: Float[Array, "B T H W C"], config: Corruption, segments: Segments) -> Bool[Array, "B T"]:
    """The frames that are not zero, by the chosen test."""
    present = (x != 0).any((2, 3, 4))
    if config.zero_test == "window":
        ids = segments.window_ids
        present = (present[:, None] & (ids == ids[:, None])).any(-1)
    return present


def check_probabilities(settings: Any, *names: str) -> None:
    """Raises ValueError, naming the first of these fields that is not a probability."""
    for name in names:
        finite_number(getattr(settings, name), name, at_least=0, at_most=1)


def check_range(settings: Any, name: str, *, at_least: float, at_most: float | None = None) -> None:
    """Raises ValueError unless the field holds two numbers within the limits, the lower one first."""
    ends = getattr(settings, name)
    if not isinstance(ends, tuple | list) or len(ends) != 2:
        raise ValueError(f"{name}={ends!r} must be two numbers, the lower and the upper end")
    low, high = (finite_number(end, name, at_least=at_least, at_most=at_most) for end in ends)
    if low > high:
        raise ValueError(f"{name}={ends!r}: the lower end comes first")


def _per_frame(value: Array) -> Array:
    return value[..., None, None, None]
