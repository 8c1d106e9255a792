"""A video being generated: an iterator over chunks whose memory does not grow and whose prompt may change."""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from helios_jax.context import History
from helios_jax.models.network import Network
from helios_jax.models.vae import WanVae
from helios_jax.parallel.devices import explains_memory_errors
from helios_jax.parallel.host_memory import fetched
from helios_jax.parallel.mesh import on_mesh_of, readable
from helios_jax.sampling.brief import brief_fields
from helios_jax.sampling.chunk import ChunkSampler, StepInfo, remember, rope_table
from helios_jax.sampling.decoding import decode_and_check
from helios_jax.sampling.finite import CONTEXT, FRAMES, Verdict, all_finite, require_finite
from helios_jax.sampling.noise import NoiseSource
from helios_jax.sampling.plan import LevelPlan, plan_chunk
from helios_jax.sampling.projected_text import ProjectedText
from helios_jax.sampling.prompt_state import PromptState
from helios_jax.sampling.prompts import MAX_BLEND_CHUNKS
from helios_jax.sampling.request import Request
from helios_jax.typing import AnyArray, Array, Float, UInt8
from helios_jax.user_input import whole_number

LESS_MEMORY = (
    "choose a smaller height and width or fewer prompts at once, pass vae_slice_frames=1, park the text encoder "
    "(park=('text_encoder',)), or shard the model over several devices with mesh=; other processes on the device take "
    "memory too"
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Chunk:
    """33 frames of video.

    Attributes:
        index: Number of the chunk, from 0.
        frames: uint8 [B,33,H,W,3]; fewer in the last chunk with ``exact_frames``.
        latents: float32 [B,9,h,w,C], model space.
        seconds: Wall time from the start of its work, or from the arrival of the previous chunk if that is later,
            until its frames were in host memory.
    """

    index: int
    frames: UInt8[np.ndarray, "B F H W 3"]
    latents: Float[np.ndarray, "B T h w C"]
    seconds: float

    __repr__ = brief_fields


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Pending:
    """A chunk that has been dispatched to the device."""

    index: int
    pixels: Array
    latents: Array
    verdicts: list[Verdict]
    started: float


class Stream:
    """Yields ``Chunk`` after ``Chunk``; ends after ``request.num_chunks``, or never. A context manager.

    An exception that interrupts ``next``, from a callback or a signal, leaves the stream usable: ``next`` resumes with
    the chunk that was interrupted, with the same text and noise. Several threads may share a stream: each chunk goes to
    one of them, and ``set_prompt`` does not wait for the chunk in progress.

    Args:
        request: The checked call.
        sampler: Samples a chunk.
        vae: Decodes it. It may be parked in host memory.
        text: Prompts.
        history: The context of the first chunk.
        noise: Source of all draws.
        integer_timesteps: The network gets floor(t).
        slice_frames: Latent frames that the VAE decodes at a time; ``None``: the whole chunk.
        lookahead: Chunks dispatched to the device before ``next`` waits for the frames of a chunk, 0 to 8. With 0 the
            device idles while frames are copied to the host, and a new prompt takes effect in the very next chunk;
            with 1 it never idles, and a new prompt takes effect one chunk later.
        on_step: Called after each step has been dispatched; again for the steps of a chunk that was interrupted.
        on_chunk: Called once with each chunk before it is yielded. If it raises, the next ``next`` yields the chunk.
        on_close: Called when the stream ends or is closed.
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
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.request = request
        self.index = 0
        self._lookahead = lookahead
        self._pending: collections.deque[_Pending] = collections.deque()
        self._ready: Chunk | None = None  # in host memory, not yet yielded
        self._announced = -1  # the last chunk that ``on_chunk`` has been called with
        self._last_done = 0.0
        self._closed = False
        # One thread at a time in ``next``. Reentrant, so that a callback that calls ``next`` gets an error, not a wait.
        self._turn = threading.RLock()
        self._busy = False
        self._sampler = sampler
        self._vae = vae
        self._text = ProjectedText(text, sampler.transformer)
        self._history = jax.device_put(history, sampler.placement)
        self._noise = noise
        self._integer_timesteps = integer_timesteps
        self._slice_frames = slice_frames
        self._on_step = on_step or (lambda _: None)
        self._on_chunk = on_chunk or (lambda _: None)
        self._on_close = on_close or (lambda: None)
        conditioned = request.image is not None or request.video is not None
        self._context_verdicts: list[Verdict] = [(CONTEXT, all_finite(self._history))] if conditioned else []
        self._plans = self._plan(amplify=False)
        self._first_plans = self._plan(amplify=request.amplify_first_chunk)
        self._past_chunks = 0
        if request.video is not None:
            window = vae.config.pixel_frames(sampler.history_config.chunk_frames)
            self._past_chunks = len(request.video[0]) // window
        self._ropes = self._rope_tables(0)

    def __repr__(self) -> str:
        request = self.request
        chunks = "chunks, no end" if request.num_chunks is None else f"of {request.num_chunks} chunks"
        state = ", closed" if self._closed else ""
        return f"Stream({self.index} {chunks}, {request.height}x{request.width}, batch {request.batch}{state})"

    def __iter__(self) -> "Stream":
        return self

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Chunk:
        with self._turn:
            if self._busy:
                raise RuntimeError("next() was called by a callback of the same stream, while a chunk is in progress")
            self._busy = True
            try:
                chunk = None if self._closed else self._next_chunk()
                if chunk is None:
                    self._closed = True
            finally:
                self._busy = False
                if self._closed:
                    self._release()
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Ends the stream and releases its device memory; afterwards ``next`` raises StopIteration.

        A chunk in progress in another thread, or in the callback that calls this, is finished and delivered first.
        """
        self._closed = True
        with self._turn:
            if not self._busy:
                self._release()

    def _release(self) -> None:
        """Drops every reference to arrays on the device."""
        self._pending.clear()
        self._ready = None
        for name in ("sampler", "vae", "text", "history", "noise", "ropes"):
            vars(self).pop(f"_{name}", None)
        self._context_verdicts = []
        self._on_close()

    def _next_chunk(self) -> Chunk | None:
        """The next chunk; ``None`` after the last one."""
        if self._ready is None and not self._await_chunk():
            return None
        chunk = self._ready
        assert chunk is not None, "it has arrived"
        if self._pending and self._pending[0].index == chunk.index:  # unless an interrupted call has removed it
            self._pending.popleft()
        if chunk.index == 0:
            # Done before the caller gets the first chunk; otherwise the device would idle until the next call.
            self._fill_queue(self._lookahead)
        if self._announced < chunk.index:
            self._announced = chunk.index
            self._on_chunk(chunk)
        self._ready = None
        return chunk

    def _await_chunk(self) -> bool:
        """Waits until the next chunk is in host memory, as ``_ready``; ``False`` after the last one."""
        # Do not queue work after the first chunk until it is delivered, to minimise the time to the first frame.
        self._fill_queue(1 + self._lookahead if self._last_done else 1)
        if not self._pending:
            return False
        # The chunk stays in the queue until its frames are here, so an interrupted wait loses nothing.
        pending = self._pending[0]
        parts, flags = zip(*pending.verdicts, strict=True)
        with self._explained_errors():
            frames, latents, flags = jax.device_get((pending.pixels, pending.latents, flags))
        require_finite(pending.index, zip(parts, flags, strict=True))
        start = max(pending.started, self._last_done)
        self._last_done = time.perf_counter()
        self._ready = Chunk(
            index=pending.index,
            frames=self._cut(frames, pending.index),
            latents=np.asarray(latents, np.float32),
            seconds=self._last_done - start,
        )
        return True

    def _fill_queue(self, count: int) -> None:
        """Dispatches chunks until ``count`` are pending, or the video has no more."""
        end = self.request.num_chunks
        while len(self._pending) < count and (end is None or self.index < end):
            with on_mesh_of(self._sampler.transformer.params), self._explained_errors():
                self._pending.append(self._dispatch())

    def _explained_errors(self) -> contextlib.AbstractContextManager[None]:
        request = self.request
        return explains_memory_errors(f"sampling {request.height}x{request.width}, batch {request.batch}", LESS_MEMORY)

    def _dispatch(self) -> _Pending:
        """Dispatches the next chunk, down to the copy of its frames to the host."""
        started = time.perf_counter()
        index = self.index
        # Sampling calls ``on_step`` and takes nearly all of the time, so this is where exceptions arrive. It changes
        # only the timeline of the prompts, which ``of_chunk`` keeps in step, so the chunk can be sampled again.
        text = self._text.of_chunk(index)
        latents, levels = self._sampler.sample(
            index,
            self._plans if index else self._first_plans,
            text=text,
            ropes=self._ropes if self._sampler.history_config.positions == "relative" else self._rope_tables(index),
            history=self._history,
            noise=self._noise,
            on_step=self._on_step,
        )
        # A parked VAE is fetched only now: while the transformer runs, activations may have its memory.
        with fetched(self._vae) as vae:
            pixels, finite = decode_and_check(vae, latents, slice_frames=self._slice_frames)
        # In the order of the computation. Later chunks need no check of their context: it consists of checked latents.
        verdicts = [*self._text.verdicts, *(() if index else self._context_verdicts), *levels, (FRAMES, finite)]
        pixels = readable(pixels)
        # ``remember`` donates the old history. It and the index change together, with no callback in between.
        self._history = remember(self._history, latents, self._anchors(index))
        self.index += 1
        latents = readable(latents)
        # Start the copies now, so they follow the work without the host; ``device_get`` only waits for them.
        for array in (pixels, latents, *(finite for _, finite in verdicts)):
            array.copy_to_host_async()
        return _Pending(index=index, pixels=pixels, latents=latents, verdicts=verdicts, started=started)

    def _cut(self, frames: UInt8[np.ndarray, "B F H W 3"], index: int) -> UInt8[np.ndarray, "B F2 H W 3"]:
        """The frames of a chunk that belong to the video."""
        if not self.request.exact_frames or self.request.num_frames is None:
            return frames
        return frames[:, : self.request.num_frames - index * frames.shape[1]]

    @property
    def num_steps(self) -> int | None:
        """Steps of all chunks, for progress; ``None`` for a stream without end."""
        if self.request.num_chunks is None:
            return None
        first, later = (sum(len(plan.step_scalars) for plan in plans) for plans in (self._first_plans, self._plans))
        return first + later * (self.request.num_chunks - 1)

    def set_prompt(self, prompt: str | Sequence[str] | AnyArray, *, blend_chunks: int = 3) -> None:
        """Changes the prompt, beginning with the next chunk that has not been dispatched to the device.

        Another thread may call this while a chunk is in progress, and so may a callback.

        Args:
            prompt: A text (for every video of the batch), one text per video, or embeddings [B,S,E].
            blend_chunks: Chunks over which old and new embeddings are interpolated; the first of them still
                shows the old prompt. 0 or 1 changes at once.

        Raises:
            ValueError: Wrong type or number of texts, embeddings of another shape or with values that are not finite,
                no text encoder to encode a text with, or a stream that has ended.
        """
        blend_chunks = whole_number(blend_chunks, "blend_chunks", at_least=0, at_most=MAX_BLEND_CHUNKS)
        sampler, text = vars(self).get("_sampler"), vars(self).get("_text")
        if self._closed or sampler is None or text is None:
            raise ValueError("the stream has ended: its prompt cannot be changed")
        with on_mesh_of(sampler.transformer.params), self._explained_errors():
            text.set(prompt, blend_chunks)

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

    def _rope_tables(self, index: int) -> tuple[Array, ...]:
        """Rotary tables of chunk ``index``, one for each level."""
        model, layout, full = self._sampler.transformer, self._sampler.history_config, self._history.frames.shape[2:4]
        number = np.int32(self._past_chunks + index)
        return tuple(rope_table(model, layout, full, plan.size, number) for plan in self._plans)

    def _anchors(self, index: int) -> bool:
        """Whether the chunk's first frame becomes the anchor: chunk 0 of T2V, chunk 1 when it is to be skipped."""
        request = self.request
        from_text = request.image is None and request.video is None
        return (index == 0 and from_text) or (index == 1 and request.skip_first_chunk)
