"""The settings of a sample as one frozen value, and the keywords that stand for its fields.

    settings = SampleSettings(height=320, width=512, guidance_scale=3.0)
    pipe.stream("A red fox.", settings=settings, seed=7)      # keywords override fields

This module imports neither JAX nor NumPy, so that command lines can show the defaults at once.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from helios_jax.config.defaults import SamplingDefaults
from helios_jax.media.fitting import Fit, check_fit
from helios_jax.media.rates import frame_rate
from helios_jax.user_input import did_you_mean, finite_number, whole_number, yes_or_no

SigmaRange = tuple[float, float]
"""Lowest and highest sigma of a uniform draw."""

MAX_FRAMES = 10**9
"""Frames of the longest video, more than a year; an endless stream has ``num_frames=None``."""

MAX_SIDE = 4096
"""Longest side of a video in pixels, six times the longest that the models were trained on."""

MAX_STEPS = 1000
"""Most steps of a level: the length of the published noise schedules."""

MAX_TEXT_TOKENS = 4096
"""Longest text, eight times what the models were trained on."""

MAX_GUIDANCE = 1000.0
"""Largest magnitude of a guidance scale."""

MAX_SEED = 2**64 - 1
"""Largest seed: the key of a random draw has 64 bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How a video is sampled, from any inputs.

    Integers and floats may be those of NumPy; they are kept as Python numbers.

    Attributes:
        num_frames: Frames wanted, rounded up to whole chunks; ``None`` streams without end.
        exact_frames: Cut the video to ``num_frames`` frames. Off: ``pipe(...)`` cuts it to the largest 4k + 1 frames of
            its chunks, as published (132 -> 129, 240 -> 261), and streamed chunks are whole.
        height: Pixel rows; a multiple of 64 for pyramid models, 16 for single-stage ones.
        width: Pixel columns, likewise.
        steps: Network calls per level, e.g. (2, 2, 2), or an int for single-stage models; ``None``: the
            checkpoint's recommendation.
        guidance_scale: Guidance is on above 1; ``None``: 1 for distilled models and 5 for others.
        amplify_first_chunk: Twice the steps in the first chunk; ``None``: on for distilled models.
        skip_first_chunk: Re-anchor on the second chunk, for starts that are static.
        keep_first_frame: Keep the first frame in the context; off, or for a model that was trained without it: one more
            recent frame instead.
        image_sigmas: Range of the noise mixed into the anchor of I2V and V2V.
        video_sigmas: Range of the noise mixed into the other conditioning frames.
        seed: Seed of all draws, 0 to 2^64 - 1; every seed gives another video.
        max_text_tokens: Length that texts are padded or cut to.
        vae_slice_frames: Latent frames that the VAE handles at a time; ``None``: a whole chunk.
        fit: What happens to an image or clip of another aspect: "stretch" (as published), "crop" around the centre, or
            "pad" with black bars.
        video_fps: Frames per second that a clip read from a file is resampled to, by the times of its frames; ``None``
            takes all frames, whatever their rate. The model was trained on 24.

    Raises:
        ValueError: A value of the wrong type, or one that no model can use.
    """

    num_frames: int | None = 132
    exact_frames: bool = False
    height: int = 384
    width: int = 640
    steps: int | Sequence[int] | None = None
    guidance_scale: float | None = None
    amplify_first_chunk: bool | None = None
    skip_first_chunk: bool = False
    keep_first_frame: bool = True
    image_sigmas: SigmaRange = (0.111, 0.135)
    video_sigmas: SigmaRange = (0.111, 0.135)
    seed: int = 0
    max_text_tokens: int = 512
    vae_slice_frames: int | None = None
    fit: Fit = "stretch"
    video_fps: float | None = 24

    def __post_init__(self) -> None:
        checked = {
            "num_frames": _optional(whole_number, self.num_frames, "num_frames", at_least=1, at_most=MAX_FRAMES),
            "exact_frames": yes_or_no(self.exact_frames, "exact_frames"),
            "height": whole_number(self.height, "height", at_most=MAX_SIDE),
            "width": whole_number(self.width, "width", at_most=MAX_SIDE),
            "steps": _steps(self.steps),
            "guidance_scale": _optional(
                finite_number, self.guidance_scale, "guidance_scale", at_least=-MAX_GUIDANCE, at_most=MAX_GUIDANCE
            ),
            "amplify_first_chunk": _optional(yes_or_no, self.amplify_first_chunk, "amplify_first_chunk"),
            "skip_first_chunk": yes_or_no(self.skip_first_chunk, "skip_first_chunk"),
            "keep_first_frame": yes_or_no(self.keep_first_frame, "keep_first_frame"),
            "image_sigmas": _sigmas(self.image_sigmas, "image_sigmas"),
            "video_sigmas": _sigmas(self.video_sigmas, "video_sigmas"),
            "seed": whole_number(self.seed, "seed", at_least=0, at_most=MAX_SEED),
            "max_text_tokens": whole_number(
                self.max_text_tokens, "max_text_tokens", at_least=1, at_most=MAX_TEXT_TOKENS
            ),
            "vae_slice_frames": _optional(whole_number, self.vae_slice_frames, "vae_slice_frames", at_least=1),
            "fit": check_fit(self.fit),
            "video_fps": _optional(_rate, self.video_fps, "video_fps"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def one_or_many(steps: Sequence[int]) -> int | tuple[int, ...] | None:
    """Step counts from a list, the form that flags and configuration files have: (10,) -> 10, () -> ``None``."""
    if len(steps) > 1:
        return tuple(steps)
    return steps[0] if steps else None


def default_settings(defaults: SamplingDefaults) -> SampleSettings:
    """The settings of a call that gives none, for a checkpoint with these defaults."""
    return SampleSettings(height=defaults.height, width=defaults.width, max_text_tokens=defaults.max_text_tokens)


@runtime_checkable
class HasDefaults(Protocol):
    """What ``takes_settings`` needs of an object: a pipeline."""

    defaults: SamplingDefaults


def takes_settings[F: Callable](function: F) -> F:
    """Lets a function accept the fields of ``SampleSettings`` as keywords, as ``settings``, or both.

    The function's signature lists every field with its default, so that editors complete them and type checkers check
    them. Fields that are passed override those of ``settings``; the function's body gets the result as ``settings``
    and reads nothing else, since a default in the signature does not tell whether the field was passed. Without
    ``settings``, fields that are not passed come from ``resume``, the state of a stream, if that is passed, and else
    from ``defaults`` of the object whose method this is.

    The decorated function raises TypeError for an unknown keyword and suggests the nearest known one.
    """
    names = inspect.signature(function).parameters.keys()
    fields = [field.name for field in dataclasses.fields(SampleSettings)]

    @functools.wraps(function)
    def call(self: HasDefaults, *args: Any, settings: SampleSettings | None = None, **keywords: Any) -> Any:
        for name in keywords.keys() - names:
            raise TypeError(f"{function.__qualname__}() has no argument {name!r}{did_you_mean(name, names)}")
        if not isinstance(settings, SampleSettings | None):
            raise ValueError(f"settings={settings!r:.200} must be a SampleSettings")
        given = {name: keywords.pop(name) for name in fields if name in keywords}
        default = getattr(keywords.get("resume"), "settings", None) or default_settings(self.defaults)
        settings = dataclasses.replace(settings or default, **given)
        return function(self, *args, settings=settings, **keywords)

    return call  # type: ignore[return-value]


def _optional(check: Callable[..., Any], value: Any, what: str, **bounds: Any) -> Any:
    return None if value is None else check(value, what, **bounds)


def _steps(steps: Any) -> int | tuple[int, ...] | None:
    """Checks types and the upper bound only; how many numbers are needed depends on the model."""
    if steps is None or isinstance(steps, int) or getattr(steps, "ndim", 1) == 0:
        return _optional(whole_number, steps, "steps", at_most=MAX_STEPS)
    if isinstance(steps, str | bytes | dict | set) or not hasattr(steps, "__iter__"):
        raise ValueError(f"steps={steps!r} must be a whole number, or one for each level of the pyramid")
    return tuple(whole_number(count, "steps", at_most=MAX_STEPS) for count in steps)


def _rate(fps: Any, what: str) -> float:
    frame_rate(fps, what)
    return float(fps)


def _sigmas(sigmas: Any, what: str) -> SigmaRange:
    try:
        low, high = sigmas
    except (TypeError, ValueError):
        raise ValueError(f"{what}={sigmas!r} must be two numbers, the lowest and the highest sigma") from None
    low, high = (finite_number(sigma, what, at_least=0.0, at_most=1.0) for sigma in (low, high))
    if low > high:
        raise ValueError(f"{what}={(low, high)}: the lowest sigma comes first")
    return low, high
