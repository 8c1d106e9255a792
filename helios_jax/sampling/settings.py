"""The settings of a sample as one frozen value, and the keywords that stand for its fields.

    settings = SampleSettings(height=320, width=512, guidance_scale=3.0)
    pipe.stream("A red fox.", settings=settings, seed=7)      # keywords override fields

This module imports neither JAX nor NumPy, so that command lines can show the defaults at once.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

SigmaRange = tuple[float, float]
"""Lowest and highest sigma of a uniform draw."""

Fit = Literal["stretch", "crop", "pad"]
"""How an image or clip is fitted to another aspect."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How a video is sampled, from any inputs.

    Attributes:
        num_frames: Frames wanted, rounded up to whole chunks; ``None`` streams without end.
        height: Pixel rows; a multiple of 64 for pyramid models, 16 for single-stage ones.
        width: Pixel columns, likewise.
        steps: Network calls per level, e.g. (2, 2, 2), or an int for single-stage models; ``None``: the
            checkpoint's recommendation.
        guidance_scale: Guidance is on above 1; ``None``: 1 for distilled models and 5 for others.
        amplify_first_chunk: Twice the steps in the first chunk; ``None``: on for distilled models.
        skip_first_chunk: Re-anchor on the second chunk, for starts that are static.
        keep_first_frame: Keep the first frame in the context; off: one more recent frame instead.
        image_sigmas: Range of the noise mixed into the anchor of I2V and V2V.
        video_sigmas: Range of the noise mixed into the other conditioning frames.
        seed: Seed of all draws.
        max_text_tokens: Length that texts are padded or cut to.
        vae_slice_frames: Latent frames that the VAE handles at a time; ``None``: a whole chunk.
        fit: What happens to an image or clip of another aspect: "stretch" (as published), "crop" around the centre, or
            "pad" with black bars.
        video_fps: Frames per second that a clip read from a file is resampled to, by the times of its frames; ``None``
            takes all frames, whatever their rate. The model was trained on 24.
    """

    num_frames: int | None = 132
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


class SettingsKeywords(TypedDict, total=False):
    """The fields of ``SampleSettings`` as keywords: a type cannot be derived from a dataclass, so it is written out."""

    num_frames: int | None
    height: int
    width: int
    steps: int | Sequence[int] | None
    guidance_scale: float | None
    amplify_first_chunk: bool | None
    skip_first_chunk: bool
    keep_first_frame: bool
    image_sigmas: SigmaRange
    video_sigmas: SigmaRange
    seed: int
    max_text_tokens: int
    vae_slice_frames: int | None
    fit: Fit
    video_fps: float | None


def one_or_many(steps: Sequence[int]) -> int | tuple[int, ...] | None:
    """Step counts from a list, the form that flags and configuration files have: (10,) -> 10, () -> ``None``."""
    if len(steps) > 1:
        return tuple(steps)
    return steps[0] if steps else None


def shows_keywords[F: Callable](function: F) -> F:
    """Lists the keywords of ``**name: Unpack[...]`` in the function's signature, for ``help`` and editors.

    Settings are shown with their defaults, other keywords with ``None``.
    """
    signature = inspect.signature(function)
    *others, keywords = signature.parameters.values()
    (names,) = typing.get_args(keywords.annotation)
    defaults = vars(SampleSettings())
    listed: list[Any] = [
        keywords.replace(name=name, kind=inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=kind)
        for name, kind in names.__annotations__.items()
    ]
    function.__signature__ = signature.replace(parameters=[*others, *listed])  # type: ignore[attr-defined]
    return function
