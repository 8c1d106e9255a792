"""What one sampling call asks for: defaults resolved and input checked before any work starts."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from helios_jax._warnings import warn_user
from helios_jax.config import HistoryConfig, PipelineConfig, SchedulerConfig, TransformerConfig, VaeConfig
from helios_jax.diffusion.pyramid import check_steps
from helios_jax.media.reading import ClipEnds, load_ends, load_image
from helios_jax.sampling.prompts import PromptSchedule
from helios_jax.typing import AnyArray

Prompt = str | Sequence[str] | PromptSchedule


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A checked sampling call.

    Attributes:
        batch: Videos generated at once.
        height: Pixel rows.
        width: Pixel columns.
        num_chunks: Chunks to generate; ``None``: no end.
        steps: Network calls per level.
        guidance_scale: Guidance is on when it exceeds 1.
        amplify_first_chunk: Twice the steps in the first chunk.
        skip_first_chunk: Take the anchor from the second chunk.
        image: Pixels [H,W,3] in [-1, 1], or ``None``.
        video: The frames of a clip that the context can hold, or ``None``.
        history: Layout of the context.
    """

    batch: int
    height: int
    width: int
    num_chunks: int | None
    steps: tuple[int, ...]
    guidance_scale: float
    amplify_first_chunk: bool
    skip_first_chunk: bool
    image: np.ndarray | None
    video: ClipEnds | None
    history: HistoryConfig

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part."""
        return self.guidance_scale > 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestDefaults:
    """The configurations that decide defaults and limits."""

    pipeline: PipelineConfig
    scheduler: SchedulerConfig
    transformer: TransformerConfig
    vae: VaeConfig

    @property
    def size_multiple(self) -> tuple[int, int]:
        """What pixel height and width must divide by: VAE, patch, and one halving per pyramid level."""
        halvings = 2 ** (self.scheduler.num_levels - 1)
        _, ph, pw = self.transformer.patch_size
        return tuple(self.vae.scale_factor_spatial * patch * halvings for patch in (ph, pw))

    @property
    def steps(self) -> int | tuple[int, ...]:
        """The recommended steps of the published models: 50, (20, 20, 20) and (2, 2, 2)."""
        if self.scheduler.num_levels == 1:
            return 50
        return (2 if self.pipeline.is_distilled else 20,) * self.scheduler.num_levels

    def resolve(
        self,
        *,
        prompt: Prompt | None,
        negative_prompt: str | Sequence[str] | None,
        prompt_embeds: AnyArray | None,
        negative_prompt_embeds: AnyArray | None,
        has_text_encoder: bool,
        image: Any,
        video: Any,
        num_frames: int | None,
        height: int,
        width: int,
        steps: int | Sequence[int] | None,
        guidance_scale: float | None,
        amplify_first_chunk: bool | None,
        skip_first_chunk: bool,
        keep_first_frame: bool,
        max_text_tokens: int,
        vae_slice_frames: int | None,
    ) -> Request:
        """Checks a call and fills its defaults.

        Raises:
            ValueError: Anything that cannot work, with what was given and what is needed.
            FileNotFoundError: An image or video that does not exist.
        """
        self._check_size(height, width)
        checked_steps = check_steps(self.scheduler, self.steps if steps is None else steps)
        distilled = self.pipeline.is_distilled
        scale = (1.0 if distilled else 5.0) if guidance_scale is None else float(guidance_scale)
        if not math.isfinite(scale):
            raise ValueError(f"guidance_scale={guidance_scale} must be a finite number")
        if distilled and scale > 1:
            warn_user(
                f"guidance_scale={scale} on a distilled model: guidance is applied, doubles the cost, and is not what "
                "the model was distilled for; 1.0 is recommended",
            )
        batch = _batch_size(prompt, prompt_embeds)
        self._check_text(prompt, prompt_embeds, "prompt", batch, has_text_encoder)
        if scale > 1:
            self._check_text(negative_prompt, negative_prompt_embeds, "negative_prompt", batch, has_text_encoder)
            tokens, negative_tokens = (
                max_text_tokens if embeds is None else np.shape(embeds)[1]
                for embeds in (prompt_embeds, negative_prompt_embeds)
            )
            if tokens != negative_tokens:
                raise ValueError(
                    f"the prompt is {tokens} tokens long and the negative prompt {negative_tokens}, but guidance runs "
                    "both as one batch: give embeddings of one length, and max_text_tokens of that length for texts"
                )
        if image is not None and video is not None:
            raise ValueError("image and video are both given; use image for I2V or video for V2V")
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames={num_frames} must be at least 1 (None streams without end)")
        if max_text_tokens < 1:
            raise ValueError(f"max_text_tokens={max_text_tokens} must be at least 1, the end of the text")
        if vae_slice_frames is not None and vae_slice_frames < 1:
            raise ValueError(f"vae_slice_frames={vae_slice_frames} must be at least 1 (None: a whole chunk at once)")
        history = HistoryConfig(keep_first_frame=keep_first_frame)
        window = self.window(history)
        clip = None
        if video is not None:
            # Of a long clip only this much ever reaches the context, see ``Conditioner.from_video``.
            clip = load_ends(video, height, width, last=visible_chunks(history) * window)
            if len(clip) < window:
                raise ValueError(
                    f"the video has {len(clip)} frames; at least {window} are needed to continue it. "
                    "Give a longer clip, or its last frame as image"
                )
        return Request(
            batch=batch,
            height=height,
            width=width,
            num_chunks=None if num_frames is None else -(-num_frames // window),
            steps=checked_steps,
            guidance_scale=scale,
            amplify_first_chunk=distilled if amplify_first_chunk is None else amplify_first_chunk,
            skip_first_chunk=skip_first_chunk,
            image=None if image is None else load_image(image, height, width),
            video=clip,
            history=history,
        )

    def window(self, history: HistoryConfig) -> int:
        """Pixel frames of one chunk."""
        return (history.chunk_frames - 1) * self.vae.scale_factor_temporal + 1

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


def visible_chunks(history: HistoryConfig) -> int:
    """Chunks of which at least a part fits into the buffer of the context."""
    return -(-history.buffer_frames // history.chunk_frames)


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
