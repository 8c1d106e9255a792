"""Validation during training: sampled videos, or clips next to their reconstruction by the VAE.

Both write mp4 files and contact sheets (PNG). ``Samples`` can also measure how its videos change from chunk to chunk
(``training.monitors``). In a run with several processes all of them take part in the
computation, because each holds a part of the networks; the first one writes the files.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from helios_jax.config import HistoryConfig
from helios_jax.media.contact_sheet import ContactSheet
from helios_jax.media.video_writer import VideoWriter
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder, Tokenizer
from helios_jax.models.vae import WanVae, reconstruct
from helios_jax.parallel.mesh import readable
from helios_jax.sampling.pipeline import HeliosPipeline
from helios_jax.sampling.prompts import NEGATIVE_PROMPT
from helios_jax.sampling.settings import SampleSettings, one_or_many
from helios_jax.training.experiment import Data, Findings, Product, Start
from helios_jax.training.metrics import read_metrics
from helios_jax.training.monitors import SHEET, Monitor, Monitors
from helios_jax.training.networks import Networks
from helios_jax.training.products import Pipeline
from helios_jax.typing import UInt8
from helios_jax.user_input import finite_number, whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Videos sampled from fixed prompts and seeds.

    Attributes:
        every: Steps between validations.
        prompts: Prompts of the videos, one each.
        negative_prompt: The negative prompt for guidance.
        num_frames: Length of the videos.
        height: Pixel rows.
        width: Pixel columns.
        steps: Network calls per level (one number for single-stage models); empty: the pipeline's recommendation.
        guidance_scale: Guidance; 0: the pipeline's recommendation.
        max_text_tokens: Length that texts are padded to.
        seed: Seed of the noise.
        fps: Frames per second of the files.
        monitors: Measure the videos too; ``None``: do not.
    """

    every: int
    prompts: tuple[str, ...]
    negative_prompt: str = NEGATIVE_PROMPT
    num_frames: int = 132
    height: int = 384
    width: int = 640
    steps: tuple[int, ...] = ()
    guidance_scale: float = 0.0
    max_text_tokens: int = 512
    seed: int = 0
    fps: int = 24
    monitors: Monitors | None = None

    def __post_init__(self) -> None:
        for name in ("every", "num_frames", "height", "width", "max_text_tokens", "fps"):
            whole_number(getattr(self, name), name, at_least=1)
        whole_number(self.seed, "seed", at_least=0, at_most=2**64 - len(self.prompts))
        finite_number(self.guidance_scale, "guidance_scale", at_least=0)
        for count in self.steps:
            whole_number(count, "each of the steps", at_least=1)
        if not self.prompts or isinstance(self.prompts, str):
            raise ValueError(f"prompts={self.prompts!r} must be a tuple of at least one text")
        if empty := [number for number, prompt in enumerate(self.prompts) if not str(prompt).strip()]:
            raise ValueError(f"prompts: number {empty[0]} is empty")

    @property
    def settings(self) -> SampleSettings:
        """Settings of the first video; the seeds of the others count up from its seed."""
        return SampleSettings(
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            steps=one_or_many(self.steps),
            guidance_scale=self.guidance_scale or None,
            max_text_tokens=self.max_text_tokens,
            seed=self.seed,
        )

    def check(self, start: Start) -> None:
        """See ``NeedsFiles``: the data sets of the monitors are there."""
        if self.monitors is not None:
            self.monitors.check()

    def prepare(self, product: Product, networks: Networks, mesh: Mesh) -> "Sampler":
        """See ``Validation``. A text encoder that is not trained is dropped after it has encoded the prompts.

        Raises:
            ValueError: The product or the settings cannot be sampled.
            FileNotFoundError: Networks that are not trained are missing.
        """
        if not isinstance(product, Pipeline):
            raise ValueError(f"videos are sampled by a pipeline, and the product is a {type(product).__name__}")
        pipeline = product.join(networks, mesh)
        # Creating a stream checks the settings. Without this, bad settings would end the run at the first validation.
        pipeline.stream(self.prompts[0], self.negative_prompt, settings=self.settings)
        encoder = pipeline.text_encoder
        assert encoder is not None, "join() gives one"
        trained = "text_encoder" in vars(networks)
        embeds = None
        if not trained:
            texts = [*self.prompts, self.negative_prompt]
            embeds = [np.asarray(readable(encoder([text], self.max_text_tokens))) for text in texts]
        monitor = None
        if self.monitors is not None:
            if self.num_frames <= pipeline.chunk_frames:
                raise ValueError(
                    f"monitors compare chunks: num_frames={self.num_frames} must be above {pipeline.chunk_frames}"
                )
            monitor = self.monitors.prepare(pipeline.vae, self.height, self.width, pipeline.chunk_frames)
        return Sampler(
            samples=self,
            product=product,
            vae=pipeline.vae,
            tokenizer=encoder.tokenizer,
            embeds=embeds,
            monitor=monitor,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """Prepared ``Samples``: the VAE, the prompts as embeddings unless the text encoder is trained, and the monitor."""

    samples: Samples
    product: Pipeline
    vae: Network[WanVae]
    tokenizer: Tokenizer
    embeds: list[np.ndarray] | None
    monitor: Monitor | None = None

    def __call__(self, networks: Networks, folder: pathlib.Path) -> Findings:
        """See ``Validator``."""
        samples, settings = self.samples, self.samples.settings
        text_encoder = None
        if self.embeds is None:
            text_encoder = TextEncoder.create(networks.text_encoder, self.tokenizer)
        pipeline = HeliosPipeline(
            config=self.product.config,
            scheduler=self.product.scheduler,
            transformer=Network.of(networks.transformer),
            vae=self.vae,
            text_encoder=text_encoder,
        )
        files, videos = [], []
        for number, prompt in enumerate(samples.prompts):
            text: dict[str, Any]
            if self.embeds is None:
                text = {"prompt": prompt, "negative_prompt": samples.negative_prompt}
            else:
                text = {"prompt_embeds": self.embeds[number], "negative_prompt_embeds": self.embeds[-1]}
            video = pipeline(**text, settings=settings, seed=samples.seed + number, progress=False)
            path = folder / f"{number}.mp4"
            files += write_clip(path, video.frames[0], samples.fps, pipeline.chunk_frames)
            videos.append(video.frames[0])
        if self.monitor is None:
            return Findings(files=files)
        sheet, values = folder / SHEET, {}
        if jax.process_index() == 0:
            # Validations of a run are in <workdir>/validation/<step>.
            log = folder.parents[1] / "metrics.jsonl"
            values = self.monitor(videos, sheet, read_metrics(log) if log.exists() else None)
        return Findings(files=[*files, sheet], values=values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstructions:
    """Clips, each next to its reconstruction by the VAE.

    Attributes:
        every: Steps between validations.
        clips: Source of the clips.
        count: Number of clips.
        fps: Frames per second of the files.
    """

    every: int
    clips: Data
    count: int = 2
    fps: int = 24

    def __post_init__(self) -> None:
        for name in ("every", "count", "fps"):
            whole_number(getattr(self, name), name, at_least=1)

    def prepare(self, product: Product, networks: Networks, mesh: Mesh) -> "Reconstructor":
        """See ``Validation``."""
        batch = next(self.clips.batches(self.count, (0, 1), seed=1))
        return Reconstructor(settings=self, frames=np.asarray(batch.frames))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reconstructor:
    """Prepared ``Reconstructions``."""

    settings: Reconstructions
    frames: UInt8[np.ndarray, "B F H W 3"]

    def __call__(self, networks: Networks, folder: pathlib.Path) -> Findings:
        """See ``Validator``."""
        files = []
        for number, frames in enumerate(self.frames):
            again = np.asarray(readable(reconstruct(Network.of(networks.vae), jnp.asarray(frames[None]))))[0]
            both = np.concatenate([frames, again], axis=2)
            chunk_frames = networks.vae.config.pixel_frames(HistoryConfig().chunk_frames)
            files += write_clip(folder / f"{number}.mp4", both, self.settings.fps, chunk_frames)
        return Findings(files=files)


def write_clip(
    path: pathlib.Path, frames: UInt8[np.ndarray, "F H W 3"], fps: int, chunk_frames: int
) -> list[pathlib.Path]:
    """Writes an mp4, and next to it a contact sheet with a row per chunk; files that exist are replaced.

    Only the first process writes; all of them return the paths.
    """
    sheet_path = path.with_suffix(".png")
    if jax.process_index() != 0:
        return [path, sheet_path]
    with (
        VideoWriter(path, fps=fps, overwrite=True) as video,
        ContactSheet(sheet_path, fps=fps, columns=6, overwrite=True) as sheet,
    ):
        for start in range(0, len(frames), chunk_frames):
            video.write(frames[start : start + chunk_frames])
            sheet.write(frames[start : start + chunk_frames])
    return [path, sheet_path]
