"""Conditioning: the content of the context before the first chunk.

    text-to-video    nothing
    image-to-video   anchor = image;  last frame = last latent frame of the image as a 33-frame still clip
    video-to-video   anchor = frame 0 of the clip;  the clip's last 33 n frames, encoded in 33-frame pieces

Latents are drawn from the VAE's posterior, and noise is mixed in: x <- sigma noise + (1 - sigma) x, with one sigma
per still latent and one per latent frame of a clip. More noise gives more motion and less fidelity (arXiv
2603.04379; order of operations as diffusers 0.42.1).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.config import HistoryConfig, VaeConfig
from helios_jax.context import History
from helios_jax.media.pixels import Frames, to_signed
from helios_jax.media.reading import ClipEnds
from helios_jax.models.network import Network
from helios_jax.models.vae import WanVae, normalize
from helios_jax.parallel.host_memory import fetched
from helios_jax.sampling.noise import NoiseSource
from helios_jax.sampling.request import Request, visible_chunks
from helios_jax.sampling.settings import SigmaRange
from helios_jax.typing import AnyArray, Array, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioner:
    """Turns images and clips into the initial ``History``.

    Attributes:
        vae: The VAE; for ``history_of`` it may be parked in host memory.
        history_config: Layout of the context.
        noise: Where draws come from.
        batch: Videos generated at once; all of them start from the same image or clip, or each from a clip of its own.
        image_sigmas: Range of the noise mixed into the anchor.
        video_sigmas: Range of the noise mixed into the other frames.
        slice_frames: Latent frames that the VAE encodes at a time; ``None``: all of a piece.
    """

    vae: Network[WanVae]
    history_config: HistoryConfig
    noise: NoiseSource
    batch: int
    image_sigmas: SigmaRange
    video_sigmas: SigmaRange
    slice_frames: int | None = None

    def history_of(self, request: Request) -> History:
        """The context that a request starts from."""
        if request.video is None and request.image is None:
            factor = self._config.scale_factor_spatial
            return self.from_nothing(request.height // factor, request.width // factor)
        with fetched(self.vae) as vae:
            ready = dataclasses.replace(self, vae=vae)
            if request.video is not None:
                return ready.from_video(*request.video)
            assert request.image is not None, "one of the two is given"
            return ready.from_image(request.image)

    def from_nothing(self, height: int, width: int) -> History:
        """The context of text-to-video. ``height`` and ``width`` are latent sides."""
        return History.empty(self.history_config, self.batch, height, width, self._config.z_dim)

    def from_image(self, image: Float[np.ndarray, "H W P"]) -> History:
        """The context of image-to-video, from pixels in [-1, 1]."""
        anchor = self._noisy("anchor", self._encode(image[None, None], "anchor"), self.image_sigmas)
        still = np.broadcast_to(image, (self._piece_frames, *image.shape))
        last = self._encode(still[None], "still")[:, -1:]
        empty = self.from_nothing(*anchor.shape[2:4])
        return empty.replace_tail(self._noisy("still", last, self.video_sigmas)).with_anchor(anchor)

    def from_video(self, *videos: Frames | ClipEnds) -> History:
        """The context of video-to-video, from unsigned frames [F,H,W,3]; only the first and the last ones are read.

        Pieces that would not stay in the buffer are not encoded, but they are counted: a piece's number, and with it
        the names of its draws, depends on the length of the whole clip.

        Args:
            *videos: One clip for all videos of the batch, or clips of one length, one for each.

        Raises:
            ValueError: The clip is shorter than one piece.
        """
        size, frames = self._piece_frames, len(videos[0])
        pieces = frames // size
        if pieces == 0:
            raise ValueError(f"the clip has {frames} frames; at least {size} are needed to continue it")

        def cut(start: int, stop: int) -> Float[np.ndarray, "clips F H W P"]:
            return np.stack([to_signed(video[start:stop]) for video in videos])

        anchor = self._noisy("anchor", self._encode(cut(0, 1), "anchor"), self.image_sigmas)
        history = self.from_nothing(*anchor.shape[2:4]).with_anchor(anchor)
        start = frames - pieces * size
        for i in range(max(0, pieces - visible_chunks(self.history_config)), pieces):
            piece = cut(start + i * size, start + (i + 1) * size)
            latents = self._encode(piece, f"piece{i}")
            history = history.push(self._noisy(f"piece{i}", latents, self.video_sigmas, per_frame=True))
        return history

    @property
    def _config(self) -> VaeConfig:
        return self.vae.config

    @property
    def _piece_frames(self) -> int:
        return (self.history_config.chunk_frames - 1) * self._config.scale_factor_temporal + 1

    def _encode(self, clips: Float[np.ndarray, "clips F H W P"], name: str) -> Float[Array, "B T h w C"]:
        """Normalised latents of one clip, or of one for each video: a posterior sample per video of the batch."""
        _, frames, height, width, _ = clips.shape
        factor, latent = self._config.scale_factor_spatial, (frames - 1) // self._config.scale_factor_temporal + 1
        shape = (self.batch, latent, height // factor, width // factor, self._config.z_dim)
        return encode_posterior(
            self.vae, clips, self.noise.normal(f"{name}/posterior", shape), slice_frames=self.slice_frames
        )

    def _noisy(
        self, name: str, latents: Float[Array, "B T h w C"], sigmas: SigmaRange, *, per_frame: bool = False
    ) -> Float[Array, "B T h w C"]:
        """Mixes noise in; the sigma is drawn uniformly from ``sigmas``."""
        low, high = sigmas
        draw = self.noise.uniform(f"{name}/sigma", (latents.shape[1],) if per_frame else ())
        sigma = jnp.reshape(draw * np.float32(high - low) + np.float32(low), (-1, 1, 1, 1))
        return sigma * self.noise.normal(f"{name}/noise", latents.shape) + (1 - sigma) * latents


@functools.partial(jax.jit, static_argnames="slice_frames")
def encode_posterior(
    vae: Network[WanVae],
    video: Float[AnyArray, "clips F H W P"],
    noise: Float[AnyArray, "B T h w C"],
    *,
    slice_frames: int | None = None,
) -> Float[Array, "B T h w C"]:
    """A sample of the VAE's posterior, mean + std noise, normalised to model space."""
    module = vae.module
    mean, logvar = module.encode(jnp.asarray(video), slice_frames)
    return normalize(module.config, mean + jnp.exp(0.5 * logvar) * noise)
