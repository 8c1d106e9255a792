"""Sampling calls: checks inputs and settings and fills in defaults before any work starts."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from helios_jax._warnings import warn_user
from helios_jax.checkpoints.settings import PipelineSettings
from helios_jax.config import HistoryConfig, PipelineConfig, SchedulerConfig, TransformerConfig, VaeConfig
from helios_jax.diffusion.pyramid import check_steps
from helios_jax.media.reading import ClipEnds, load_ends, load_image
from helios_jax.parallel.devices import explains_memory_errors
from helios_jax.sampling.brief import brief_fields
from helios_jax.sampling.inputs import Prompt as Prompt
from helios_jax.sampling.inputs import SampleInputs
from helios_jax.sampling.settings import SampleSettings

LESS_MEMORY = (
    "choose a smaller height and width or fewer prompts at once, pass vae_slice_frames=1, park the text encoder "
    "(park=('text_encoder',)), or shard the model over several devices with mesh=; other processes on the device take "
    "memory too"
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Request:
    """A checked sampling call.

    Attributes:
        batch: Videos generated at once.
        height: Pixel rows.
        width: Pixel columns.
        num_chunks: Chunks to generate; ``None``: no end.
        num_frames: Frames of the finished video: the frames of all chunks cut to 4k + 1, or with ``exact_frames`` the
            number wanted; ``None``: no end.
        exact_frames: Streamed chunks are cut to ``num_frames`` as well.
        steps: Network calls per level.
        guidance_scale: Guidance is on when it exceeds 1.
        amplify_first_chunk: Twice the steps in the first chunk.
        skip_first_chunk: Take the anchor from the second chunk.
        conditioned: The video starts from an image or a clip.
        image: Pixels [H,W,3] in [-1, 1], or ``None``.
        video: The first frame of a clip and the last ones, as far as the context can hold them: of one clip for all
            videos, or of one for each; or ``None``.
        past_chunks: Whole chunks of that clip, which absolute positions count.
        history_config: Layout of the context.
    """

    batch: int
    height: int
    width: int
    num_chunks: int | None
    num_frames: int | None
    exact_frames: bool
    steps: tuple[int, ...]
    guidance_scale: float
    amplify_first_chunk: bool
    skip_first_chunk: bool
    conditioned: bool
    image: np.ndarray | None
    video: tuple[ClipEnds, ...] | None
    past_chunks: int
    history_config: HistoryConfig

    __repr__ = brief_fields

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part."""
        return self.guidance_scale > 1.0

    def explained_errors(self, work: str = "sampling") -> contextlib.AbstractContextManager[None]:
        """Explains what needs less when ``work`` runs out of memory on the device, as MemoryError."""
        return explains_memory_errors(f"{work} {self.height}x{self.width}, batch {self.batch}", LESS_MEMORY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestDefaults:
    """The configurations that determine defaults and limits; ``of`` takes them from a checkpoint without its weights.

        checkpoint = read_settings("BestWishYsh/Helios-Distilled")  # helios_jax.checkpoints.settings
        RequestDefaults.of(checkpoint).resolve(SampleInputs(prompt="A red fox."), SampleSettings(height=320))

    Attributes:
        pipeline: What kind of checkpoint this is.
        scheduler: Noise schedule and solver.
        transformer: Its patch size and width of text.
        vae: Its compression.
    """

    pipeline: PipelineConfig
    scheduler: SchedulerConfig
    transformer: TransformerConfig
    vae: VaeConfig

    @classmethod
    def of(cls, checkpoint: PipelineSettings) -> "RequestDefaults":
        """The configurations of a checkpoint."""
        return cls(
            pipeline=checkpoint.config,
            scheduler=checkpoint.scheduler,
            transformer=checkpoint.transformer,
            vae=checkpoint.vae,
        )

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

    def resolve(self, inputs: SampleInputs, settings: SampleSettings, *, has_text_encoder: bool = True) -> Request:
        """Checks a call and fills in its defaults.

        Args:
            inputs: Prompts, image and video; the last two are read.
            settings: How to sample.
            has_text_encoder: Whether the checkpoint can encode texts.

        Raises:
            ValueError: The call cannot work; the message says what was given and what is needed.
            FileNotFoundError: An image or video that does not exist.
        """
        request = self._without_inputs(settings)
        inputs.check(
            width=self.transformer.text_dim,
            has_text_encoder=has_text_encoder,
            guided_tokens=settings.max_text_tokens if request.guided else None,
        )
        height, width, image, video = settings.height, settings.width, inputs.image, inputs.video
        if image is not None and video is not None:
            raise ValueError("image and video are both given; use image for I2V or video for V2V")
        window = self.vae.pixel_frames(request.history_config.chunk_frames)
        clips, past_chunks = None, 0
        if video is not None:
            # Only this much of a long clip reaches the context, see ``Conditioner.from_video``.
            last = visible_chunks(request.history_config) * window
            clips = tuple(
                load_ends(clip, height, width, last=last, fps=settings.video_fps, fit=settings.fit)
                for clip in _clips(video, inputs.batch)
            )
            clip = clips[0]
            past_chunks = len(clip) // window
            if len(clip) < window:
                name, rate = _file_notes(video, settings.video_fps)
                raise ValueError(
                    f"the video{name} has {len(clip)} frames{rate}; at least {window} are needed to continue it. "
                    "Give a longer clip, or its last frame as image"
                )
        return dataclasses.replace(
            request,
            batch=inputs.batch,
            conditioned=image is not None or video is not None,
            image=None if image is None else load_image(image, height, width, fit=settings.fit),
            video=clips,
            past_chunks=past_chunks,
        )

    def resume(
        self, settings: SampleSettings, *, batch: int, conditioned: bool, past_chunks: int, index: int
    ) -> Request:
        """The request of a video that continues at chunk ``index``, where its image or clip is needed no more.

        Raises:
            ValueError: The settings cannot work, or the video has no further chunk.
        """
        request = dataclasses.replace(
            self._without_inputs(settings), batch=batch, conditioned=conditioned, past_chunks=past_chunks
        )
        if request.num_chunks is not None and request.num_chunks <= index:
            window = self.vae.pixel_frames(request.history_config.chunk_frames)
            raise ValueError(
                f"num_frames={settings.num_frames}, but {index * window} frames of the video are finished: "
                "to continue it, give a larger number, which counts them too, or None for a stream without end"
            )
        return request

    def _without_inputs(self, settings: SampleSettings) -> Request:
        """The request that settings determine, for one video from text."""
        self._check_size(settings.height, settings.width)
        steps = check_steps(self.scheduler, self.steps if settings.steps is None else settings.steps)
        distilled, amplify = self.pipeline.is_distilled, settings.amplify_first_chunk
        scale, num_frames = self._guidance_scale(settings), settings.num_frames
        history_config = self.pipeline.history
        if not settings.keep_first_frame:
            history_config = dataclasses.replace(history_config, keep_first_frame=False)
        window = self.vae.pixel_frames(history_config.chunk_frames)
        num_chunks = None if num_frames is None else -(-num_frames // window)
        if num_chunks is not None and not settings.exact_frames:
            num_frames = self.vae.whole_frames(num_chunks * window)
        return Request(
            batch=1,
            height=settings.height,
            width=settings.width,
            num_chunks=num_chunks,
            num_frames=num_frames,
            exact_frames=settings.exact_frames,
            steps=steps,
            guidance_scale=scale,
            amplify_first_chunk=distilled if amplify is None else amplify,
            skip_first_chunk=settings.skip_first_chunk,
            conditioned=False,
            image=None,
            video=None,
            past_chunks=0,
            history_config=history_config,
        )

    def _guidance_scale(self, settings: SampleSettings) -> float:
        """The guidance scale; warns about guidance on distilled models, which are trained to do without."""
        distilled, given = self.pipeline.is_distilled, settings.guidance_scale
        scale = (1.0 if distilled else 5.0) if given is None else given
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


def _clips(video: Any, batch: int) -> Sequence[Any]:
    """The clips of a call: one for all videos, or one for each.

    Raises:
        ValueError: There is a list of clips, and not one for each prompt.
    """
    if getattr(video, "ndim", 0) != 5:
        return (video,)
    if len(video) != batch:
        raise ValueError(f"video holds {len(video)} clips for {batch} prompts; give one for each, or one clip for all")
    return tuple(video)


def _file_notes(video: Any, fps: float | None) -> tuple[str, str]:
    """The name of a video file, and the rate that its frames were resampled to; empty for arrays."""
    if not isinstance(video, str | os.PathLike):
        return "", ""
    return f" {os.fspath(video)}", "" if fps is None else f" at {fps:g} frames per second"


def visible_chunks(history_config: HistoryConfig) -> int:
    """Number of chunks that fit into the context's buffer at least in part."""
    return -(-history_config.buffer_frames // history_config.chunk_frames)
