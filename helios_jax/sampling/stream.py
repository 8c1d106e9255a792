"""A video being generated: an iterator over chunks whose memory does not grow and whose prompt may change."""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.context import History
from helios_jax.models.blocks import TextContext
from helios_jax.models.network import Network
from helios_jax.models.tokenization import needed_keys
from helios_jax.models.vae import WanVae, decode_frames
from helios_jax.parallel.mesh import on_mesh_of
from helios_jax.sampling.chunk import (
    ChunkSampler,
    LevelPlan,
    StepInfo,
    plan_chunk,
    project_text,
    remember,
    rope_table,
)
from helios_jax.sampling.noise import NoiseSource
from helios_jax.sampling.prompts import EmbeddingTimeline
from helios_jax.sampling.request import Request
from helios_jax.typing import AnyArray, Array, Float, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """33 frames of video.

    Attributes:
        index: Number of the chunk, from 0.
        frames: uint8 [B,33,H,W,3].
        latents: float32 [B,9,h,w,C], model space.
        seconds: Wall time until its frames were in host memory, from the start of its work or from when the chunk
            before it was there, whichever is later.
    """

    index: int
    frames: UInt8[np.ndarray, "B F H W 3"]
    latents: Float[np.ndarray, "B T h w C"]
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Pending:
    """A chunk whose work has been handed to the device."""

    index: int
    pixels: Array
    latents: Array
    started: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The text side of a stream.

    Attributes:
        timeline: Embeddings of the prompts, chunk by chunk.
        negative: Embeddings of the negative prompts; ``None`` without guidance.
        encode: Prompts -> embeddings, for prompts set live; ``None`` without a text encoder.
    """

    timeline: EmbeddingTimeline
    negative: Float[AnyArray, "B S E"] | None
    encode: Callable[[Sequence[str]], Float[Array, "B S E"]] | None


class Stream:
    """Yields ``Chunk`` after ``Chunk``; ends after ``request.num_chunks``, or never.

    Args:
        request: The checked call.
        sampler: Samples a chunk.
        vae: Decodes it.
        text: Prompts.
        history: The context before the first chunk.
        noise: Where draws come from.
        integer_timesteps: The network sees floor(t).
        slice_frames: Latent frames that the VAE decodes at a time; ``None``: the whole chunk.
        lookahead: Chunks handed to the device before the frames of a chunk are waited for. With 0 the device idles
            while frames travel, and a new prompt shows in the very next chunk; with 1 it never idles, and a new
            prompt shows one chunk later.
        on_step: Called after each step has been dispatched.
        on_chunk: Called with each chunk before it is yielded.
    """

    def __init__(
        self,
        *,
        request: Request,
        sampler: ChunkSampler,
        vae: Network[WanVae],
        text: Text,
        history: History,
        noise: NoiseSource,
        integer_timesteps: bool,
        slice_frames: int | None = None,
        lookahead: int = 0,
        on_step: Callable[[StepInfo], None] | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> None:
        self.request = request
        self.index = 0
        self._lookahead = lookahead
        self._pending: collections.deque[_Pending] = collections.deque()
        self._last_done = 0.0
        self._sampler = sampler
        self._vae = vae
        self._text = text
        self._history = jax.device_put(history, sampler.placement)
        self._noise = noise
        self._integer_timesteps = integer_timesteps
        self._slice_frames = slice_frames
        self._on_step = on_step or (lambda _: None)
        self._on_chunk = on_chunk or (lambda _: None)
        self._embeds: Array | None = None
        self._next_text = 0
        full = history.frames.shape[2:4]
        self._plans = self._plan(amplify=False)
        self._first_plans = self._plan(amplify=request.amplify_first_chunk)
        self._ropes = tuple(rope_table(sampler.transformer, sampler.history, full, plan.size) for plan in self._plans)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Chunk:
        # Nothing is put behind the first chunk before it is out: its frames are wanted as soon as can be.
        is_first = not self._last_done
        self._hand_out(1 if is_first else 1 + self._lookahead)
        if not self._pending:
            raise StopIteration
        pending = self._pending.popleft()
        frames, latents = jax.device_get((pending.pixels, pending.latents))
        start = max(pending.started, self._last_done)
        self._last_done = time.perf_counter()
        if is_first:
            self._hand_out(self._lookahead)
        chunk = Chunk(
            index=pending.index,
            frames=frames,
            latents=np.asarray(latents, np.float32),
            seconds=self._last_done - start,
        )
        self._on_chunk(chunk)
        return chunk

    def _hand_out(self, count: int) -> None:
        """Makes the device's queue ``count`` chunks long, if the video has as many left."""
        end = self.request.num_chunks
        while len(self._pending) < count and (end is None or self.index < end):
            with on_mesh_of(self._sampler.transformer.params):
                self._pending.append(self._dispatch())

    def _dispatch(self) -> _Pending:
        """Hands the next chunk to the device, down to the copy of its frames to the host."""
        started = time.perf_counter()
        index = self.index
        latents = self._sampler.sample(
            index,
            self._plans if index else self._first_plans,
            text=self._project_text(),
            ropes=self._ropes,
            history=self._history,
            noise=self._noise,
            on_step=self._on_step,
        )
        pixels = decode_chunk(self._vae, latents, slice_frames=self._slice_frames)
        self._history = remember(self._history, latents, self._anchors(index))
        self.index += 1
        pixels.copy_to_host_async()
        latents.copy_to_host_async()
        return _Pending(index=index, pixels=pixels, latents=latents, started=started)

    @property
    def num_steps(self) -> int | None:
        """Steps of all chunks, for progress; ``None`` for a stream without end."""
        if self.request.num_chunks is None:
            return None
        first, later = (sum(len(plan.rows) for plan in plans) for plans in (self._first_plans, self._plans))
        return first + later * (self.request.num_chunks - 1)

    def set_prompt(self, prompt: str | Sequence[str] | AnyArray, *, blend_chunks: int = 3) -> None:
        """Changes the prompt from the next chunk on that has not been handed to the device.

        Args:
            prompt: A text (for every video of the batch), one text per video, or embeddings [B,S,E].
            blend_chunks: Chunks over which old and new embeddings are interpolated; the first of them still
                shows the old prompt. 0 or 1 changes at once.

        Raises:
            ValueError: Wrong number of texts or shape of embeddings, or no text encoder to encode a text with.
        """
        if isinstance(prompt, jax.Array | np.ndarray):
            embeds = jnp.asarray(prompt, self._sampler.transformer.dtype)
        elif self._text.encode is None:
            raise ValueError("this checkpoint was loaded without a text encoder: set_prompt needs embeddings")
        else:
            texts = [prompt] * self.request.batch if isinstance(prompt, str) else list(prompt)
            if len(texts) != self.request.batch:
                raise ValueError(f"set_prompt got {len(texts)} texts for a batch of {self.request.batch}")
            with on_mesh_of(self._sampler.transformer.params):
                embeds = self._text.encode(texts)
        self._text.timeline.set(embeds, blend_chunks)

    def _plan(self, *, amplify: bool) -> tuple[LevelPlan, ...]:
        return plan_chunk(
            self._sampler.scheduler,
            self._sampler.transformer.config,
            steps=self.request.steps,
            frames=self._sampler.history.chunk_frames,
            size=self._history.frames.shape[2:4],
            integer_timesteps=self._integer_timesteps,
            amplify=amplify,
        )

    def _project_text(self) -> TextContext:
        """Text keys and values of this chunk; projected anew only when the embeddings changed."""
        if self._next_text > self.index:  # the chunk was interrupted and is sampled again
            return self._projected
        embeds = self._text.timeline.next()
        self._next_text = self.index + 1
        if embeds is not self._embeds:
            both = embeds if self._text.negative is None else jnp.concatenate([embeds, self._text.negative])
            self._projected = project_text(self._sampler.transformer, both, needed_keys(both))
            self._embeds = embeds
        return self._projected

    def _anchors(self, index: int) -> bool:
        """Whether the chunk's first frame becomes the anchor: chunk 0 of T2V, chunk 1 when it is to be skipped."""
        request = self.request
        from_text = request.image is None and request.video is None
        return (index == 0 and from_text) or (index == 1 and request.skip_first_chunk)


@functools.partial(jax.jit, static_argnames="slice_frames")
def decode_chunk(
    vae: Network[WanVae], latents: Float[Array, "B T h w C"], *, slice_frames: int | None = None
) -> UInt8[Array, "B F H W 3"]:
    """Pixels of one chunk. Every chunk is decoded from an empty causal cache, as the model was trained."""
    return decode_frames(vae.module, latents, slice_frames)
