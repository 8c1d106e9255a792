"""``HeliosPipeline``: a checkpoint, and video from text, images and clips.

    pipe = HeliosPipeline.from_pretrained("BestWishYsh/Helios-Distilled")
    out = pipe("A red fox trots through fresh snow.", num_frames=132)      # all at once
    for chunk in pipe.stream("A red fox trots through fresh snow."):       # as it is made
        ...

The checkpoint decides how it is sampled: ``model_index.json`` and ``scheduler_config.json`` tell Base, Mid and
Distilled apart.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import PipelineConfig, SchedulerConfig
from helios_jax.diffusion.guidance import make_guidance
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder, possible_keys
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.models.vae import WanVae
from helios_jax.parallel.mesh import on_mesh_of
from helios_jax.sampling.chunk import ChunkSampler, StepInfo
from helios_jax.sampling.conditioning import Conditioner, SigmaRange
from helios_jax.sampling.noise import KeyNoise, NoiseSource
from helios_jax.sampling.progress import Progress
from helios_jax.sampling.prompts import EmbeddingTimeline, PromptSchedule
from helios_jax.sampling.request import Prompt, Request, RequestDefaults
from helios_jax.sampling.stream import Chunk, Stream, Text
from helios_jax.typing import AnyArray, Array, DType, Float, Path, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampleOutput:
    """A finished video.

    Attributes:
        frames: uint8 [B,F,H,W,3]; F is the largest 4k + 1 not above 33 frames per chunk.
        latents: float32 [B,T,h,w,C] in model space, generated chunks only.
    """

    frames: UInt8[np.ndarray, "B F H W 3"]
    latents: Float[np.ndarray, "B T h w C"]


@dataclasses.dataclass(kw_only=True, eq=False)
class HeliosPipeline:
    """A Helios checkpoint on the device(s).

    Attributes:
        config: What kind of checkpoint this is.
        scheduler: Noise schedule and solver.
        transformer: The denoiser.
        vae: Pixels <-> latents.
        text_encoder: Prompts -> embeddings; ``None`` when the checkpoint has none.
    """

    config: PipelineConfig
    scheduler: SchedulerConfig
    transformer: Network[HeliosTransformer]
    vae: Network[WanVae]
    text_encoder: TextEncoder | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: Path,
        *,
        dtype: DType = "bfloat16",
        vae_dtype: DType = "bfloat16",
        mesh: jax.sharding.Mesh | None = None,
    ) -> "HeliosPipeline":
        """Loads a checkpoint.

        Args:
            path: A folder in the published (diffusers) layout, a folder written by ``save``, or a hub id such as
                "BestWishYsh/Helios-Distilled".
            dtype: Compute dtype of transformer and text encoder; the parameters published as fp32-only stay
                fp32. "float32" is for comparison with other implementations.
            vae_dtype: Compute dtype of the VAE; "float32" is the published setting.
            mesh: Devices to shard the parameters over; ``None`` for one device.

        Raises:
            FileNotFoundError: The folder or a part of it is missing.
            ValueError: Something in it is not supported or does not fit.
        """
        from helios_jax.checkpoints.pipelines import load_pipeline

        return load_pipeline(path, dtype=dtype, vae_dtype=vae_dtype, mesh=mesh)

    def save(self, folder: Path, layout: Literal["diffusers", "orbax"] = "diffusers") -> None:
        """Writes the checkpoint; ``from_pretrained`` reads both layouts.

        Raises:
            FileExistsError: The folder already holds a checkpoint.
        """
        from helios_jax.checkpoints.pipelines import save_pipeline

        save_pipeline(self, folder, layout)

    def load_lora(self, path: Path, scale: float = 1.0) -> "HeliosPipeline":
        """Merges a LoRA file into the transformer, in place; returns the pipeline.

        Args:
            path: safetensors with diffusers/PEFT names or Kohya-style Wan names.
            scale: Strength; -scale undoes an earlier merge up to rounding.
        """
        from helios_jax.checkpoints.lora_files import merge_lora_file

        self.transformer = merge_lora_file(self.transformer, path, scale)
        return self

    def __call__(
        self,
        prompt: Prompt | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        progress: bool = True,
        **arguments: Any,
    ) -> SampleOutput:
        """Generates a whole video; the arguments are those of ``stream``.

        Returns:
            Frames and latents of all chunks, in host memory.
        """
        if arguments.get("num_frames", ...) is None:
            raise ValueError("num_frames=None never ends: use stream()")
        arguments.setdefault("lookahead", 1)
        chunks = list(self.stream(prompt, negative_prompt, progress=progress, **arguments))
        frames = np.concatenate([chunk.frames for chunk in chunks], axis=1)
        return SampleOutput(
            frames=frames[:, : (frames.shape[1] - 1) // 4 * 4 + 1],
            latents=np.concatenate([chunk.latents for chunk in chunks], axis=1),
        )

    def stream(
        self,
        prompt: Prompt | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        prompt_embeds: AnyArray | None = None,
        negative_prompt_embeds: AnyArray | None = None,
        image: Any = None,
        video: Any = None,
        num_frames: int | None = 132,
        height: int = 384,
        width: int = 640,
        steps: int | Sequence[int] | None = None,
        guidance_scale: float | None = None,
        amplify_first_chunk: bool | None = None,
        skip_first_chunk: bool = False,
        keep_first_frame: bool = True,
        image_sigmas: SigmaRange = (0.111, 0.135),
        video_sigmas: SigmaRange = (0.111, 0.135),
        seed: int = 0,
        noise: NoiseSource | None = None,
        max_text_tokens: int = 512,
        vae_slice_frames: int | None = None,
        lookahead: int = 0,
        progress: bool = False,
        on_step: Callable[[StepInfo], None] | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Stream:
        """Generates a video chunk by chunk, 33 frames each, in constant memory.

        Args:
            prompt: A text, a list of texts (one video each), or a ``PromptSchedule``.
            negative_prompt: What guidance leads away from; "" by default.
            prompt_embeds: Embeddings [B,S,E] in place of ``prompt``.
            negative_prompt_embeds: Embeddings in place of ``negative_prompt``.
            image: Start from this image: path, PIL image, or uint8/float array [H,W,3] (I2V).
            video: Continue this clip: path, or uint8/float array [F,H,W,3], at least 33 frames (V2V).
            num_frames: Frames wanted, rounded up to whole chunks; ``None`` streams without end.
            height: Pixel rows; a multiple of 64 for pyramid models, 16 for single-stage ones.
            width: Pixel columns, likewise.
            steps: Network calls per level, as (2, 2, 2), or an int for single-stage models; the checkpoint's
                recommendation by default.
            guidance_scale: Guidance is on above 1; by default 1 for distilled models and 5 for others.
            amplify_first_chunk: Twice the steps in the first chunk; by default on for distilled models.
            skip_first_chunk: Re-anchor on the second chunk, for starts that are static.
            keep_first_frame: Keep the first frame in the context; off: one more recent frame instead.
            image_sigmas: Range of the noise mixed into the anchor of I2V and V2V.
            video_sigmas: Range of the noise mixed into the other conditioning frames.
            seed: Seed of all draws.
            noise: Draws from elsewhere, in place of ``seed``.
            max_text_tokens: Length that texts are padded or cut to.
            vae_slice_frames: Latent frames that the VAE handles at a time; ``None``: a whole chunk.
            lookahead: 1 lets the device work on the next chunk while the frames of one travel; a prompt set live then
                shows one chunk later.
            progress: Show a progress bar with frames per second.
            on_step: Called after each step has been dispatched.
            on_chunk: Called with each chunk.

        Returns:
            A ``Stream``: an iterator of ``Chunk`` with ``set_prompt``.

        Raises:
            ValueError: Input that cannot work; raised before any work starts.
            FileNotFoundError: An image or clip that does not exist.
        """
        request = self._defaults.resolve(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            has_text_encoder=self.text_encoder is not None,
            image=image,
            video=video,
            num_frames=num_frames,
            height=height,
            width=width,
            steps=steps,
            guidance_scale=guidance_scale,
            amplify_first_chunk=amplify_first_chunk,
            skip_first_chunk=skip_first_chunk,
            keep_first_frame=keep_first_frame,
            max_text_tokens=max_text_tokens,
            vae_slice_frames=vae_slice_frames,
        )
        noise = KeyNoise(key=jax.random.key(seed)) if noise is None else noise
        bar = Progress(enabled=progress)
        with on_mesh_of(self.transformer.params):
            text = Text(
                timeline=self._timeline(prompt, prompt_embeds, request, max_text_tokens),
                negative=self._negative(negative_prompt, negative_prompt_embeds, request, max_text_tokens),
                encode=None if self.text_encoder is None else lambda texts: self.text_encoder(texts, max_text_tokens),
            )
            conditioner = Conditioner(
                vae=self.vae,
                history=request.history,
                noise=noise,
                batch=request.batch,
                image_sigmas=image_sigmas,
                video_sigmas=video_sigmas,
                slice_frames=vae_slice_frames,
            )
            stream = Stream(
                request=request,
                sampler=ChunkSampler(
                    transformer=self.transformer,
                    scheduler=self.scheduler,
                    guidance=make_guidance(self.config) if request.guided else None,
                    scale=request.guidance_scale,
                    history=request.history,
                ),
                vae=self.vae,
                text=text,
                history=conditioner.history_of(request),
                noise=noise,
                integer_timesteps=self.config.is_pyramid,
                slice_frames=vae_slice_frames,
                lookahead=lookahead,
                on_step=bar.on_step(on_step),
                on_chunk=bar.on_chunk(on_chunk),
            )
        bar.start(stream)
        return stream

    def compile(
        self,
        *,
        batch: int = 1,
        height: int = 384,
        width: int = 640,
        guidance_scale: float | None = None,
        max_text_tokens: int = 512,
        conditioning: Literal["image", "video"] | None = None,
        vae_slice_frames: int | None = None,
    ) -> float:
        """Compiles everything that sampling at one size needs, so that the first real chunk starts at once.

        Programs depend on sizes, on the batch, on whether guidance is on and on the text's length in steps of 128
        tokens, not on steps, prompts or seeds: a chunk of one step per level, of nothing, and one more for each length
        of text compile them all.

        Args:
            batch: As many prompts as will be sampled at once.
            height: As in ``stream``, like the arguments below that bear its names.
            width: See ``height``.
            guidance_scale: See ``height``.
            max_text_tokens: See ``height``.
            conditioning: What sampling will start from: an image, a video, or nothing.
            vae_slice_frames: See ``height``.

        Returns:
            Seconds that it took.
        """
        start = time.perf_counter()
        black = np.zeros((33, height, width, 3), np.uint8)
        levels = self.scheduler.num_levels
        text: dict[str, Any] = {"prompt": [""] * batch}
        embeds = np.zeros((batch, max_text_tokens, self.transformer.config.text_dim), np.float32)
        if self.text_encoder is None:
            text = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds}
        lengths = possible_keys(max_text_tokens)
        stream = self.stream(
            **text,
            image=black[0] if conditioning == "image" else None,
            video=black if conditioning == "video" else None,
            num_frames=33 * (1 + len(lengths)),
            height=height,
            width=width,
            steps=(3,) + (1,) * (levels - 1) if levels > 1 else 3,  # zero-init skips the network in the first two
            guidance_scale=guidance_scale,
            amplify_first_chunk=False,
            max_text_tokens=max_text_tokens,
            vae_slice_frames=vae_slice_frames,
        )
        next(stream)
        for length in lengths:
            longer = embeds.copy()
            longer[:, : length - 1] = 1
            stream.set_prompt(longer, blend_chunks=0)
            next(stream)
        return time.perf_counter() - start

    @property
    def _defaults(self) -> RequestDefaults:
        return RequestDefaults(
            pipeline=self.config,
            scheduler=self.scheduler,
            transformer=self.transformer.config,
            vae=self.vae.config,
        )

    def _timeline(
        self, prompt: Prompt | None, embeds: AnyArray | None, request: Request, max_tokens: int
    ) -> EmbeddingTimeline:
        if embeds is not None:
            return EmbeddingTimeline(jnp.asarray(embeds, self.transformer.dtype))
        if isinstance(prompt, PromptSchedule):
            return prompt.timeline([self._encode(text, request, max_tokens) for text in prompt.prompts])
        return EmbeddingTimeline(self._encode(prompt, request, max_tokens))

    def _negative(
        self, prompt: str | Sequence[str] | None, embeds: AnyArray | None, request: Request, max_tokens: int
    ) -> Float[Array, "B S E"] | None:
        if not request.guided:
            return None
        if embeds is not None:
            return jnp.asarray(embeds, self.transformer.dtype)
        return self._encode(prompt, request, max_tokens)

    def _encode(self, prompt: str | Sequence[str] | None, request: Request, max_tokens: int) -> Float[Array, "B S E"]:
        """Embeddings of one text for the whole batch or of one text per video; no text is the empty one."""
        assert self.text_encoder is not None, "the request was checked"
        texts = [prompt or ""] * request.batch if prompt is None or isinstance(prompt, str) else list(prompt)
        return self.text_encoder(texts, max_tokens)
