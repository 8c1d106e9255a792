"""Sampling calls: checks inputs and settings and fills in defaults before any work starts."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from helios_jax._warnings import warn_user
from helios_jax.config import HistoryConfig, PipelineConfig, SchedulerConfig, TransformerConfig, VaeConfig
from helios_jax.diffusion.pyramid import check_steps
from helios_jax.media.rates import frame_rate
from helios_jax.media.reading import ClipEnds, load_ends, load_image
from helios_jax.media.resizing import check_fit
from helios_jax.sampling.prompts import PromptSchedule
from helios_jax.sampling.settings import SampleSettings
from helios_jax.typing import AnyArray

Prompt = str | Sequence[str] | PromptSchedule


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampleInputs:
    """The inputs of a video, as the user gave them.

    Attributes:
        prompt: A text, a list of texts (one video each), or a ``PromptSchedule``.
        negative_prompt: The prompt that guidance steers away from; ``None`` is "".
        prompt_embeds: Embeddings [B,S,E] instead of ``prompt``.
        negative_prompt_embeds: Embeddings instead of ``negative_prompt``.
        image: Image to start from: path, PIL image, or uint8/float array [H,W,3] (I2V).
        video: Clip to continue: path, or uint8/float array [F,H,W,3] (V2V).
    """

    prompt: Prompt | None = None
    negative_prompt: str | Sequence[str] | None = None
    prompt_embeds: AnyArray | None = None
    negative_prompt_embeds: AnyArray | None = None
    image: Any = None
    video: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A checked sampling call.

    Attributes:
        batch: Videos generated at once.
        height: Pixel rows.
        width: Pixel columns.
        num_chunks: Chunks to generate; ``None``: no end.
        num_frames: Frames of the finished video, the frames of all chunks cut to 4k + 1; ``None``: no end.
        steps: Network calls per level.
        guidance_scale: Guidance is on when it exceeds 1.
        amplify_first_chunk: Twice the steps in the first chunk.
        skip_first_chunk: Take the anchor from the second chunk.
        image: Pixels [H,W,3] in [-1, 1], or ``None``.
        video: The first frame of a clip and the last ones, as far as the context can hold them; or ``None``.
        history_config: Layout of the context.
    """

    batch: int
    height: int
    width: int
    num_chunks: int | None
    num_frames: int | None
    steps: tuple[int, ...]
    guidance_scale: float
    amplify_first_chunk: bool
    skip_first_chunk: bool
    image: np.ndarray | None
    video: ClipEnds | None
    history_config: HistoryConfig

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part."""
        return self.guidance_scale > 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestDefaults:
    """The configurations that determine defaults and limits."""

    pipeline: PipelineConfig
    scheduler: SchedulerConfig
    transformer: TransformerConfig
    vae: VaeConfig

    @property
    def size_multiple(self) -> tuple[int, int]:
        """Divisors of pixel height and width: the VAE's factor, the patch, and one halving per pyramid level."""
        halvings = 2 ** (self.scheduler.num_levels - 1)
        _, ph, pw = self.transformer.patch_size
        return tuple(self.vae.scale_factor_spatial * patch * halvings for patch in (ph, pw))

    @property
    def steps(self) -> int | tuple[int, ...]:
        """The recommended steps of the published models: 50, (20, 20, 20) and (2, 2, 2)."""
        if self.scheduler.num_levels == 1:
            return 50
        return (2 if self.pipeline.is_distilled else 20,) * self.scheduler.num_levels

    def resolve(self, inputs: SampleInputs, settings: SampleSettings, *, has_text_encoder: bool) -> Request:
        """Checks a call and fills in its defaults.

        Raises:
            ValueError: The call cannot work; the message says what was given and what is needed.
            FileNotFoundError: An image or video that does not exist.
        """
        height, width = settings.height, settings.width
        self._check_size(height, width)
        steps = check_steps(self.scheduler, self.steps if settings.steps is None else settings.steps)
        distilled, amplify = self.pipeline.is_distilled, settings.amplify_first_chunk
        scale = self._guidance_scale(settings)
        batch = _batch_size(inputs.prompt, inputs.prompt_embeds)
        self._check_texts(inputs, batch, has_text_encoder, settings.max_text_tokens if scale > 1 else None)
        image, video = inputs.image, inputs.video
        num_frames, max_text_tokens = settings.num_frames, settings.max_text_tokens
        vae_slice_frames = settings.vae_slice_frames
        if image is not None and video is not None:
            raise ValueError("image and video are both given; use image for I2V or video for V2V")
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames={num_frames} must be at least 1 (None streams without end)")
        if max_text_tokens < 1:
            raise ValueError(f"max_text_tokens={max_text_tokens} must be at least 1, the end of the text")
        if vae_slice_frames is not None and vae_slice_frames < 1:
            raise ValueError(f"vae_slice_frames={vae_slice_frames} must be at least 1 (None: a whole chunk at once)")
        check_fit(settings.fit)
        if settings.video_fps is not None:
            frame_rate(settings.video_fps, "video_fps")
        history_config = HistoryConfig(keep_first_frame=settings.keep_first_frame)
        window = self.vae.pixel_frames(history_config.chunk_frames)
        clip = None
        if video is not None:
            # Only this much of a long clip reaches the context, see ``Conditioner.from_video``.
            last = visible_chunks(history_config) * window
            clip = load_ends(video, height, width, last=last, fps=settings.video_fps, fit=settings.fit)
            if len(clip) < window:
                name, rate = _file_notes(video, settings.video_fps)
                raise ValueError(
                    f"the video{name} has {len(clip)} frames{rate}; at least {window} are needed to continue it. "
                    "Give a longer clip, or its last frame as image"
                )
        num_chunks = None if num_frames is None else -(-num_frames // window)
        return Request(
            batch=batch,
            height=height,
            width=width,
            num_chunks=num_chunks,
            num_frames=None if num_chunks is None else self.vae.whole_frames(num_chunks * window),
            steps=steps,
            guidance_scale=scale,
            amplify_first_chunk=distilled if amplify is None else amplify,
            skip_first_chunk=settings.skip_first_chunk,
            image=None if image is None else load_image(image, height, width, fit=settings.fit),
            video=clip,
            history_config=history_config,
        )

    def _guidance_scale(self, settings: SampleSettings) -> float:
        """The guidance scale; warns about guidance on distilled models, which are trained to do without."""
        distilled, given = self.pipeline.is_distilled, settings.guidance_scale
        scale = (1.0 if distilled else 5.0) if given is None else float(given)
        if not math.isfinite(scale):
            raise ValueError(f"guidance_scale={given} must be a finite number")
        if distilled and scale > 1:
            warn_user(
                f"guidance_scale={scale} on a distilled model: guidance is applied, doubles the cost, and is not what "
                "the model was distilled for; 1.0 is recommended",
            )
        return scale

    def _check_size(self, height: int, width: int) -> None:
        multiples = self.size_multiple
        if height < 1 or width < 1 or height % multiples[0] or width % multiples[1]:
            nearest = [
                max(1, round(side / multiple)) * multiple
                for side, multiple in zip((height, width), multiples, strict=True)
            ]
            raise ValueError(
                f"height={height}, width={width}: this model needs multiples of {multiples[0]} x {multiples[1]} "
                f"({self.scheduler.num_levels} pyramid level(s)); the nearest valid size is "
                f"height={nearest[0]}, width={nearest[1]}"
            )

    def _check_texts(self, inputs: SampleInputs, batch: int, has_text_encoder: bool, guided_tokens: int | None) -> None:
        """Checks the prompt and, in a guided call, where texts have ``guided_tokens`` tokens, the negative prompt."""
        self._check_text(inputs.prompt, inputs.prompt_embeds, "prompt", batch, has_text_encoder)
        # Without guidance the negative prompt is not used, so it need not fit.
        if guided_tokens is None:
            return
        negative, negative_embeds = inputs.negative_prompt, inputs.negative_prompt_embeds
        self._check_text(negative, negative_embeds, "negative_prompt", batch, has_text_encoder)
        tokens, negative_tokens = (
            guided_tokens if embeds is None else np.shape(embeds)[1]
            for embeds in (inputs.prompt_embeds, negative_embeds)
        )
        if tokens != negative_tokens:
            raise ValueError(
                f"the prompt is {tokens} tokens long and the negative prompt {negative_tokens}, but guidance runs "
                "both as one batch: give embeddings of one length, and max_text_tokens of that length for texts"
            )

    def _check_text(
        self, text: Prompt | None, embeds: AnyArray | None, name: str, batch: int, has_text_encoder: bool
    ) -> None:
        if text is not None and embeds is not None:
            raise ValueError(f"{name} and {name}_embeds are both given; use one")
        if embeds is not None:
            shape, width = np.shape(embeds), self.transformer.text_dim
            if len(shape) != 3 or shape[0] != batch or shape[2] != width:
                raise ValueError(f"{name}_embeds has shape {shape}; [{batch}, tokens, {width}] is needed")
        elif not has_text_encoder:
            raise ValueError(f"this checkpoint was loaded without a text encoder: give {name}_embeds")
        elif not isinstance(text, str | PromptSchedule | None) and len(text) != batch:
            raise ValueError(f"{name} has {len(text)} texts for a batch of {batch}; give one for each, or one str")


def _file_notes(video: Any, fps: float | None) -> tuple[str, str]:
    """The name of a video file, and the rate that its frames were resampled to; empty for arrays."""
    if not isinstance(video, str | os.PathLike):
        return "", ""
    return f" {os.fspath(video)}", "" if fps is None else f" at {fps:g} frames per second"


def visible_chunks(history_config: HistoryConfig) -> int:
    """Number of chunks that fit into the context's buffer at least in part."""
    return -(-history_config.buffer_frames // history_config.chunk_frames)


def _batch_size(prompt: Prompt | None, embeds: AnyArray | None) -> int:
    if prompt is None:
        if embeds is None:
            raise ValueError("give prompt or prompt_embeds; for a video without text use prompt=''")
        if np.ndim(embeds) != 3:
            raise ValueError(f"prompt_embeds has shape {np.shape(embeds)}; [batch, tokens, width] is needed")
        return np.shape(embeds)[0]
    if isinstance(prompt, str | PromptSchedule):
        return 1
    if len(prompt) == 0:
        raise ValueError("prompt is an empty list: give at least one text")
    if not all(isinstance(text, str) for text in prompt):
        raise ValueError(f"prompt must be a str, a list of str or a PromptSchedule, got {prompt!r}")
    return len(prompt)
