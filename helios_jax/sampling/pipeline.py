"""``HeliosPipeline``: loads a checkpoint and generates video from text, images and clips.

    pipe = HeliosPipeline.from_pretrained("BestWishYsh/Helios-Distilled")
    out = pipe("A red fox trots through fresh snow.", num_frames=132)      # the whole video
    for chunk in pipe.stream("A red fox trots through fresh snow."):       # each chunk when it is ready
        ...

The checkpoint determines how it is sampled: ``model_index.json`` and ``scheduler_config.json`` tell Base, Mid and
Distilled apart.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.checkpoints.pipelines import PipelineParts, load_parts, save_parts
from helios_jax.checkpoints.weights import Layout
from helios_jax.config import PipelineConfig, SamplingDefaults, SchedulerConfig
from helios_jax.media.fitting import Fit
from helios_jax.models.network import Network, count_in_words
from helios_jax.parallel.devices import describe_devices, devices_of
from helios_jax.sampling.chunk import StepInfo
from helios_jax.sampling.inputs import Prompt, SampleInputs, check_options
from helios_jax.sampling.networks import LoadedNetworks
from helios_jax.sampling.noise import NoiseSource
from helios_jax.sampling.output import SampleOutput
from helios_jax.sampling.pending import Chunk
from helios_jax.sampling.progress import Progress
from helios_jax.sampling.report import device_report, kind_of, parameters_of
from helios_jax.sampling.request import RequestDefaults
from helios_jax.sampling.settings import SampleSettings, SigmaRange, takes_settings
from helios_jax.sampling.start import resume_stream, start_stream
from helios_jax.sampling.stream import Stream
from helios_jax.sampling.stream_state import StreamState, check_resume
from helios_jax.sampling.warmup import compile_programs
from helios_jax.typing import AnyArray, DType, Path
from helios_jax.user_input import whole_number

_NETWORKS = frozenset({"transformer", "vae"})
"""The attributes that ``close`` removes."""


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class HeliosPipeline(LoadedNetworks):
    """A Helios checkpoint on the device(s). A context manager, which closes it.

    Attributes:
        config: What kind of checkpoint this is.
        scheduler: Noise schedule and solver.
        transformer: The denoiser.
        vae: Pixels <-> latents.
        text_encoder: Prompts -> embeddings; ``None`` when the checkpoint has none.
        defaults: Settings that the checkpoint was trained for. They apply where a call gives neither the setting nor
            ``settings``; the signatures below show those of the published models.
    """

    config: PipelineConfig
    scheduler: SchedulerConfig
    defaults: SamplingDefaults = dataclasses.field(default_factory=SamplingDefaults)

    def __repr__(self) -> str:
        if self._is_closed:
            return "HeliosPipeline(closed)"
        parameters = count_in_words(parameters_of(self.transformer))
        dtypes = f"{jnp.dtype(self.transformer.dtype).name}, vae {jnp.dtype(self.vae.dtype).name}"
        text = "" if self.text_encoder else ", no text encoder"
        devices = describe_devices(devices_of(self.transformer.params))
        return f"HeliosPipeline({kind_of(self.config)}, {parameters} parameters, {dtypes}{text}, {devices})"

    def __enter__(self) -> "HeliosPipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def from_pretrained(
        cls,
        path: Path,
        *,
        dtype: DType = "bfloat16",
        vae_dtype: DType = "bfloat16",
        mesh: jax.sharding.Mesh | None = None,
        park: Sequence[str] = (),
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | None = None,
        allow_cpu: bool = False,
    ) -> "HeliosPipeline":
        """Loads a checkpoint.

        Args:
            path: A folder in the published (diffusers) layout, a folder written by ``save``, a hub id such as
                "BestWishYsh/Helios-Distilled", or "helios-tiny", the small model that comes with the package.
            dtype: Compute dtype of transformer and text encoder; the parameters published as fp32-only stay
                fp32. "float32" is for comparison with other implementations, and "auto" is float32 on CPUs, where it
                is faster, and bfloat16 elsewhere.
            vae_dtype: Compute dtype of the VAE; "float32" is the published setting, "auto" as above.
            mesh: Devices to shard the parameters over; ``None`` for one device.
            park: Networks that wait in host memory between uses, "text_encoder" or "vae" or both; see ``park``.
            revision: Branch, tag or commit of a hub id; its main branch by default.
            token: Access token of the hub; the one that ``hf auth login`` stored by default.
            cache_dir: Where downloads are kept; the hub's own cache folder by default.
            allow_cpu: Load a transformer of more than 2 billion parameters on a CPU too, where sampling takes hours.

        Raises:
            FileNotFoundError: The folder or a part of it is missing, or the download failed.
            ValueError: Something in it is not supported or does not fit, or the weights do not fit into the device's
                memory. Settings and memory are checked before weights are downloaded.
        """
        if not isinstance(mesh, jax.sharding.Mesh | None):
            raise ValueError(f"mesh={mesh!r} must be a jax.sharding.Mesh, from jax.make_mesh for example, or None")
        parts = load_parts(
            path,
            dtype=dtype,
            vae_dtype=vae_dtype,
            mesh=mesh,
            park=park,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            allow_cpu=allow_cpu,
        )
        return cls(**vars(parts))

    def save(self, folder: Path, layout: Layout = "diffusers") -> None:
        """Writes the checkpoint, whole or not at all; ``from_pretrained`` reads both layouts.

        Raises:
            ValueError: Unknown layout, or a LoRA was loaded with ``merge=False``, for which a checkpoint has no place.
            FileExistsError: There is such a folder, and it is not empty.
            OSError: The folder cannot be written to, or the disk is full.
        """
        if separate := [name for name, lora in self.loras.items() if not lora.is_merged]:
            raise ValueError(
                f"{', '.join(separate)} loaded with merge=False, and a checkpoint has no place for adapters: unload "
                "them (unload_lora), or load them with merge=True"
            )
        parts = PipelineParts(
            config=self.config,
            scheduler=self.scheduler,
            transformer=self.transformer,
            vae=self.vae,
            text_encoder=self.text_encoder,
            defaults=self.defaults,
        )
        save_parts(parts, folder, layout)

    def close(self) -> None:
        """Releases the networks; their device memory is freed as soon as no stream or other pipeline uses them.

        Any later use of the pipeline raises ValueError.
        """
        for name in _NETWORKS:
            vars(self).pop(name, None)
        vars(self)["text_encoder"] = None

    @property
    def _is_closed(self) -> bool:
        return not vars(self).keys() >= _NETWORKS

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in _NETWORKS:
                raise ValueError("the pipeline is closed: load it again with HeliosPipeline.from_pretrained")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def describe(self) -> str:
        """Describes the devices and the parameters, dtype and bytes of every network, one per line."""
        networks: dict[str, Network[Any]] = {"transformer": self.transformer, "vae": self.vae}
        if self.text_encoder is not None:
            networks["text_encoder"] = self.text_encoder.encoder
        return device_report(self.config, networks)

    @property
    def chunk_frames(self) -> int:
        """Pixel frames of one chunk."""
        return self.vae.config.pixel_frames(self.config.history.chunk_frames)

    @takes_settings
    def __call__(
        self,
        prompt: Prompt | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        prompt_embeds: AnyArray | None = None,
        negative_prompt_embeds: AnyArray | None = None,
        image: Any = None,
        video: Any = None,
        num_frames: int | None = 132,
        exact_frames: bool = False,
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
        max_text_tokens: int = 512,
        vae_slice_frames: int | None = None,
        fit: Fit = "stretch",
        video_fps: float | None = 24,
        settings: SampleSettings | None = None,
        noise: NoiseSource | None = None,
        lookahead: int = 1,
        progress: bool = True,
        on_step: Callable[[StepInfo], None] | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> SampleOutput:
        """Generates a whole video; see ``stream`` for the arguments.

        Returns:
            Frames and latents of all chunks, in host memory.

        Raises:
            ValueError: Input that cannot work; raised before any work starts.
            FileNotFoundError: An image or clip that does not exist.
            FloatingPointError: A chunk is not finite.
            MemoryError: The device has too little memory.
        """
        assert settings is not None, "the decorator gives it"
        if settings.num_frames is None:
            raise ValueError("num_frames=None never ends: use stream()")
        stream = self.stream(
            prompt,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            image=image,
            video=video,
            settings=settings,
            noise=noise,
            lookahead=lookahead,
            progress=progress,
            on_step=on_step,
            on_chunk=on_chunk,
        )
        with stream:
            chunks = list(stream)
        return SampleOutput(
            frames=np.concatenate([chunk.frames for chunk in chunks], axis=1)[:, : stream.request.num_frames],
            latents=np.concatenate([chunk.latents for chunk in chunks], axis=1),
        )

    @takes_settings
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
        exact_frames: bool = False,
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
        max_text_tokens: int = 512,
        vae_slice_frames: int | None = None,
        fit: Fit = "stretch",
        video_fps: float | None = 24,
        settings: SampleSettings | None = None,
        resume: StreamState | None = None,
        noise: NoiseSource | None = None,
        lookahead: int = 0,
        progress: bool = False,
        on_step: Callable[[StepInfo], None] | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Stream:
        """Generates a video chunk by chunk, 33 frames each, in constant memory.

        Args:
            prompt: A text, a list of texts (one video each), or a ``PromptSchedule``.
            negative_prompt: The prompt that guidance steers away from, or one for each video. ``None``: the published
                one, ``hx.NEGATIVE_PROMPT``; "" is the empty text. Without guidance it is not used.
            prompt_embeds: Embeddings [B,S,E] instead of ``prompt``.
            negative_prompt_embeds: Embeddings instead of ``negative_prompt``.
            image: Start from this image: path, PIL image, or uint8/float array [H,W,3] (I2V).
            video: Continue this clip: path, or uint8/float array [F,H,W,3], at least 33 frames (V2V); or an array
                [B,F,H,W,3] with a clip for each prompt.
            num_frames: Frames wanted, rounded up to whole chunks; ``None`` streams without end.
            exact_frames: Cut the video to ``num_frames`` frames, here in the last chunk. Off: chunks are whole, and
                ``pipe(...)`` cuts the video to the largest 4k + 1 frames of its chunks, as published.
            height: Pixel rows; a multiple of 64 for pyramid models, 16 for single-stage ones. Models that were trained
                at another size than the published ones have another default: see ``defaults``.
            width: Pixel columns, likewise.
            steps: Network calls per level, e.g. (2, 2, 2), or an int for single-stage models; ``None``: the
                checkpoint's recommendation.
            guidance_scale: Guidance is on above 1; ``None``: 1 for distilled models and 5 for others.
            amplify_first_chunk: Twice the steps in the first chunk; ``None``: on for distilled models.
            skip_first_chunk: Re-anchor on the second chunk, for starts that are static.
            keep_first_frame: Keep the first frame in the context; off, or for a model that was trained without it: one
                more recent frame instead.
            image_sigmas: Range of the noise mixed into the anchor of I2V and V2V.
            video_sigmas: Range of the noise mixed into the other conditioning frames.
            seed: Seed of all draws, 0 to 2^64 - 1.
            max_text_tokens: Length that texts are padded or cut to; see ``height``.
            vae_slice_frames: Latent frames that the VAE handles at a time; ``None``: a whole chunk.
            fit: What happens to an image or clip of another aspect: "stretch" (as published), "crop" around the centre,
                or "pad" with black bars.
            video_fps: Frames per second that a clip read from a file is resampled to, by the times of its frames;
                ``None`` takes all frames. The model was trained on 24.
            settings: The arguments from ``num_frames`` to here as one value; those that are passed override it.
            resume: Continue the video of ``Stream.state()``, instead of prompts, image and clip. It keeps its settings;
                ``num_frames`` (of the whole video), ``exact_frames``, ``steps``, ``seed`` and ``vae_slice_frames`` may
                be given anew. A new prompt is set with ``set_prompt``.
            noise: Source of all draws, instead of the seed.
            lookahead: 1 lets the device work on the next chunk while the frames of one are copied to the host; a prompt
                set live then takes effect one chunk later.
            progress: Show a progress bar with frames per second.
            on_step: Called after each step has been dispatched.
            on_chunk: Called once with each chunk.

        Returns:
            A ``Stream``: an iterator of ``Chunk`` with ``set_prompt`` and ``close``.

        Raises:
            ValueError: Input that cannot work; raised before any work starts.
            FileNotFoundError: An image or clip that does not exist.
            MemoryError: The device has too little memory.
        """
        assert settings is not None, "the decorator gives it"
        inputs = SampleInputs(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            image=image,
            video=video,
        )
        check_options(lookahead=lookahead, noise=noise, progress=progress, on_step=on_step, on_chunk=on_chunk)
        check_resume(resume, inputs)
        options: dict[str, Any] = {"noise": noise, "lookahead": lookahead}
        bar = Progress(enabled=progress)
        options |= {"on_step": bar.on_step(on_step), "on_chunk": bar.on_chunk(on_chunk), "on_close": bar.close}
        if resume is not None:
            stream = resume_stream(self, self._defaults, resume, settings, **options)
        else:
            request = self._defaults.resolve(inputs, settings, has_text_encoder=self.text_encoder is not None)
            stream = start_stream(self, request, inputs, settings, **options)
        bar.start(stream)
        return stream

    @takes_settings
    def compile(
        self,
        *,
        batch: int = 1,
        conditioning: Literal["image", "video"] | None = None,
        num_frames: int | None = 132,
        exact_frames: bool = False,
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
        max_text_tokens: int = 512,
        vae_slice_frames: int | None = None,
        fit: Fit = "stretch",
        video_fps: float | None = 24,
        settings: SampleSettings | None = None,
    ) -> float:
        """Compiles every program that sampling with these settings needs, so that the first real chunk starts at once.

        Programs depend on sizes, on the batch, on whether guidance is on, and on the length of the text in steps of 128
        tokens; not on the number of steps, on prompts or on seeds.

        Args:
            batch: Number of prompts that will be sampled together.
            conditioning: What sampling will start from: an image, a video, or nothing.
            settings: Settings of the sampling to come, as one value or as the other arguments, which are those of
                ``stream``; length, steps and seed are ignored.

        Returns:
            The time that it took, in seconds.

        Raises:
            ValueError: Settings that cannot work.
            MemoryError: The device has too little memory.
        """
        assert settings is not None, "the decorator gives it"
        batch = whole_number(batch, "batch", at_least=1)
        if conditioning not in (None, "image", "video"):
            raise ValueError(f"conditioning={conditioning!r} must be 'image', 'video' or None")
        return compile_programs(self, settings, batch=batch, conditioning=conditioning)

    @property
    def _defaults(self) -> RequestDefaults:
        return RequestDefaults(
            pipeline=self.config,
            scheduler=self.scheduler,
            transformer=self.transformer.config,
            vae=self.vae.config,
        )
