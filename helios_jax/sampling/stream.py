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
from helios_jax.parallel.mesh import on_mesh_of, readable
from helios_jax.sampling.chunk import ChunkSampler, StepInfo, project_text, remember, rope_table
from helios_jax.sampling.noise import NoiseSource
from helios_jax.sampling.plan import LevelPlan, plan_chunk
from helios_jax.sampling.prompt_state import PromptState
from helios_jax.sampling.request import Request
from helios_jax.typing import AnyArray, Array, Float, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """33 frames of video.

    Attributes:
        index: Number of the chunk, from 0.
        frames: uint8 [B,33,H,W,3].
        latents: float32 [B,9,h,w,C], model space.
        seconds: Wall time from the start of its work, or from the arrival of the previous chunk if that is later,
            until its frames were in host memory.
    """

    index: int
    frames: UInt8[np.ndarray, "B F H W 3"]
    latents: Float[np.ndarray, "B T h w C"]
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Pending:
    """A chunk that has been dispatched to the device."""

    index: int
    pixels: Array
    latents: Array
    started: float


class Stream:
    """Yields ``Chunk`` after ``Chunk``; ends after ``request.num_chunks``, or never.

    An exception that interrupts ``next``, from a callback or a signal, leaves the stream usable: ``next`` resumes with
    the chunk that was interrupted, with the same text and noise.

    Args:
        request: The checked call.
        sampler: Samples a chunk.
        vae: Decodes it.
        text: Prompts.
        history: The context of the first chunk.
        noise: Source of all draws.
        integer_timesteps: The network gets floor(t).
        slice_frames: Latent frames that the VAE decodes at a time; ``None``: the whole chunk.
        lookahead: Chunks dispatched to the device before ``next`` waits for the frames of a chunk. With 0 the device
            idles while frames are copied to the host, and a new prompt takes effect in the very next chunk; with 1 it
            never idles, and a new prompt takes effect one chunk later.
        on_step: Called after each step has been dispatched.
        on_chunk: Called with each chunk before it is yielded.
    """

    def __init__(
        self,
        *,
        request: Request,
        sampler: ChunkSampler,
        vae: Network[WanVae],
        text: PromptState,
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
        self._embeds: Array | None = None  # of the chunk that is sampled
        self._next_text = 0  # the first chunk with embeddings not yet taken from the timeline
        self._projected: TextContext | None = None
        self._projected_from: Array | None = None
        full = history.frames.shape[2:4]
        self._plans = self._plan(amplify=False)
        self._first_plans = self._plan(amplify=request.amplify_first_chunk)
        self._ropes = tuple(
            rope_table(sampler.transformer, sampler.history_config, full, plan.size) for plan in self._plans
        )

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Chunk:
        # Do not queue work after the first chunk until it is delivered, to minimise the time to the first frame.
        is_first = not self._last_done
        self._fill_queue(1 if is_first else 1 + self._lookahead)
        if not self._pending:
            raise StopIteration
        # The chunk stays in the queue until its frames are here, so an interrupted wait loses nothing.
        pending = self._pending[0]
        frames, latents = jax.device_get((pending.pixels, pending.latents))
        self._pending.popleft()
        start = max(pending.started, self._last_done)
        self._last_done = time.perf_counter()
        if is_first:
            # Before the caller gets the first chunk: otherwise the device would idle until the next call.
            self._fill_queue(self._lookahead)
        chunk = Chunk(
            index=pending.index,
            frames=frames,
            latents=np.asarray(latents, np.float32),
            seconds=self._last_done - start,
        )
        self._on_chunk(chunk)
        return chunk

    def _fill_queue(self, count: int) -> None:
        """Dispatches chunks until ``count`` are pending, or the video has no more."""
        end = self.request.num_chunks
        while len(self._pending) < count and (end is None or self.index < end):
            with on_mesh_of(self._sampler.transformer.params):
                self._pending.append(self._dispatch())

    def _dispatch(self) -> _Pending:
        """Dispatches the next chunk, down to the copy of its frames to the host."""
        started = time.perf_counter()
        index = self.index
        # Sampling calls ``on_step`` and takes nearly all of the time, so this is where exceptions arrive. It changes
        # only the timeline of the stream, which ``_project_text`` keeps in step, so the chunk can be sampled again.
        latents = self._sampler.sample(
            index,
            self._plans if index else self._first_plans,
            text=self._project_text(),
            ropes=self._ropes,
            history=self._history,
            noise=self._noise,
            on_step=self._on_step,
        )
        pixels = readable(decode_chunk(self._vae, latents, slice_frames=self._slice_frames))
        # ``remember`` donates the old history. It and the index change together, with no callback in between.
        self._history = remember(self._history, latents, self._anchors(index))
        self.index += 1
        latents = readable(latents)
        # Start the copies now, so they follow the work without the host; ``device_get`` only waits for them.
        pixels.copy_to_host_async()
        latents.copy_to_host_async()
        return _Pending(index=index, pixels=pixels, latents=latents, started=started)

    @property
    def num_steps(self) -> int | None:
        """Steps of all chunks, for progress; ``None`` for a stream without end."""
        if self.request.num_chunks is None:
            return None
        first, later = (sum(len(plan.step_scalars) for plan in plans) for plans in (self._first_plans, self._plans))
        return first + later * (self.request.num_chunks - 1)

    def set_prompt(self, prompt: str | Sequence[str] | AnyArray, *, blend_chunks: int = 3) -> None:
        """Changes the prompt, beginning with the next chunk that has not been dispatched to the device.

        Args:
            prompt: A text (for every video of the batch), one text per video, or embeddings [B,S,E].
            blend_chunks: Chunks over which old and new embeddings are interpolated; the first of them still
                shows the old prompt. 0 or 1 changes at once.

        Raises:
            ValueError: Wrong number of texts or shape of embeddings, or no text encoder to encode a text with.
        """
        with on_mesh_of(self._sampler.transformer.params):
            self._text.change(prompt, blend_chunks)

    def _plan(self, *, amplify: bool) -> tuple[LevelPlan, ...]:
        return plan_chunk(
            self._sampler.scheduler,
            self._sampler.transformer.config,
            steps=self.request.steps,
            frames=self._sampler.history_config.chunk_frames,
            size=self._history.frames.shape[2:4],
            integer_timesteps=self._integer_timesteps,
            amplify=amplify,
        )

    def _project_text(self) -> TextContext:
        """Text keys and values of this chunk, projected again only when the embeddings change."""
        # The timeline advances once per chunk. When a chunk was interrupted and is sampled again, its embeddings have
        # been taken already, and taking the next ones would skip a chunk of a schedule or of a blend.
        if self._next_text <= self.index:
            self._embeds = self._text.timeline.next()
            self._next_text = self.index + 1
        # Compared by identity: while nothing changes, the timeline returns the same array.
        if self._projected is None or self._projected_from is not self._embeds:
            assert self._embeds is not None, "chunks are numbered from 0"
            negative = self._text.negative
            both = self._embeds if negative is None else jnp.concatenate([self._embeds, negative])
            self._projected = project_text(self._sampler.transformer, both, needed_keys(both))
            self._projected_from = self._embeds
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
    """Pixels of one chunk."""
    # Every chunk is decoded from an empty causal cache: the model was trained on chunks that were encoded one by one.
    return decode_frames(vae.module, latents, slice_frames)
