"""A video being generated: an iterator over chunks whose memory does not grow and whose prompt may change."""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Generator

import jax

from helios_jax.context import History
from helios_jax.sampling.chunk import StepInfo
from helios_jax.sampling.pending import Chunk, Dispatched, Moment, PendingChunk
from helios_jax.sampling.producer import ChunkProducer
from helios_jax.sampling.prompt_state import NewPrompt
from helios_jax.sampling.prompts import MAX_BLEND_CHUNKS
from helios_jax.sampling.request import Request
from helios_jax.sampling.stream_state import Origin, StreamState, captured
from helios_jax.user_input import whole_number, yes_or_no


class Stream:
    """Yields ``Chunk`` after ``Chunk``; ends after ``request.num_chunks``, or never. A context manager.

    ``next`` is ``dispatch``, which gives the device the work of a chunk, and ``result`` of what it returns, which waits
    for the frames. Programs that do something in between call the two themselves, and may mix them with ``next``.

    An exception out of ``on_step``, or a signal, cancels the chunk in progress: the stream is as it was before that
    chunk, and ``next`` or ``dispatch`` samples it again, with the same noise and, unless the prompt was changed since,
    the same text. Several threads may share a stream: each chunk goes to one of them, and ``set_prompt`` does not wait
    for the chunk in progress.

    Args:
        request: The checked call.
        producer: Dispatches the work of a chunk.
        start: The first chunk: 0, unless an earlier stream made some.
        history: Its context.
        origin: What ``state`` records of the call.
        lookahead: Chunks dispatched to the device before ``next`` waits for the frames of a chunk, 0 to 8. With 0 the
            device idles while frames are copied to the host, and a new prompt takes effect in the very next chunk;
            with 1 it never idles, and a new prompt takes effect one chunk later.
        on_step: Called after each step has been dispatched; again for the steps of a chunk that was cancelled.
        on_chunk: Called once with each chunk before it is yielded. If it raises, the next ``next`` yields the chunk.
        on_close: Called when the stream ends or is closed.

    Attributes:
        request: As above.
        index: The next chunk to be dispatched.
        num_steps: Steps of all its chunks, for progress; ``None`` for a stream without end.
    """

    def __init__(
        self,
        *,
        request: Request,
        producer: ChunkProducer,
        start: int,
        history: History,
        origin: Origin,
        lookahead: int = 0,
        on_step: Callable[[StepInfo], None] | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.request = request
        self.index = start
        end = request.num_chunks
        self.num_steps = None if end is None else producer.num_steps(range(start, end))
        self._start = start
        self._origin: Origin | None = origin
        self._lookahead = lookahead
        self._queue: collections.deque[Dispatched] = collections.deque()  # in order, until they are taken
        self._announced = start - 1  # the last chunk that ``on_chunk`` has been called with
        self._last_done = 0.0
        self._closed = False
        # One thread at a time in ``next``. Reentrant, so that a callback that calls ``next`` gets an error, not a wait.
        self._turn = threading.RLock()
        self._busy = False
        self._producer: ChunkProducer | None = producer
        self._history: History | None = jax.device_put(history, producer.sampler.placement)
        self._on_step = on_step or (lambda _: None)
        self._on_chunk = on_chunk or (lambda _: None)
        self._on_close = on_close or (lambda: None)

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
        with self._exclusive("next()"):
            chunk = None if self._closed else self._next_chunk()
            if chunk is None:
                self._closed = True
        if chunk is None:
            raise StopIteration
        return chunk

    def dispatch(self) -> PendingChunk:
        """Dispatches the next chunk to the device and returns without waiting for it.

        The text of the chunk is decided now. Each chunk that waits for its ``result`` keeps its frames on the device.

        Raises:
            ValueError: The video has no more chunks (``has_more``).
            MemoryError: The device has too little memory.
            RuntimeError: A callback of the stream called this.
        """
        with self._exclusive("dispatch()"):
            if not self.has_more:
                raise ValueError(f"the stream has ended: there is no chunk {self.index} to dispatch")
            return PendingChunk(self._dispatch(), self._take)

    @property
    def has_more(self) -> bool:
        """Whether there are chunks that have not been dispatched."""
        end = self.request.num_chunks
        return not self._closed and (end is None or self.index < end)

    def state(self) -> StreamState:
        """Copies what the video is continued from to host memory: its next chunk is the first that was not taken.

        Waits until the device has finished the chunk before that one. Later chunks that have been dispatched already
        stay in this stream; one that resumes from the state samples them again, with the text that they have here.

        Raises:
            ValueError: The stream has ended.
            RuntimeError: A callback of the stream called this.
        """
        with self._exclusive("state()"):
            if self._producer is None or self._origin is None:
                raise ValueError("the stream has ended: its state can be taken after each chunk, until then")
            moments = [*(chunk.before for chunk in self._queue if chunk.before), self._now()]
            # Prompts that were set after the first of these moments are changes that lie in its future.
            changes = {at: change for moment in moments for at, change in moment.timeline.changes.items()}
            timeline = dataclasses.replace(moments[0].timeline, changes=changes)
            moment = dataclasses.replace(moments[0], timeline=timeline)
            with self._producer.on_device():
                return captured(moment, self._producer.text.negative, self._origin, self.request)

    def set_prompt(self, prompt: NewPrompt, *, blend_chunks: int = 3, live: bool = False) -> None:
        """Changes the prompt, beginning with the next chunk that has not been dispatched to the device.

        Another thread may call this while a chunk is in progress, and so may a callback.

        Args:
            prompt: A text (for every video of the batch), one text per video, at most four weighted texts
                [(text, weight), ...], whose embeddings are averaged, or embeddings [B,S,E].
            blend_chunks: Chunks over which old and new embeddings are interpolated; the first of them still
                shows the old prompt. 0 or 1 changes at once.
            live: Leave out that first chunk, for someone who waits for the new prompt: of a blend over 3 chunks, the
                next chunk shows half of it and the one after all of it.

        Raises:
            ValueError: Wrong type or number of texts, a weight below 0, embeddings of another shape or with values that
                are not finite, no text encoder to encode a text with, or a stream that has ended.
        """
        blend_chunks = whole_number(blend_chunks, "blend_chunks", at_least=0, at_most=MAX_BLEND_CHUNKS)
        live = yes_or_no(live, "live")
        producer = self._producer
        if self._closed or producer is None:
            raise ValueError("the stream has ended: its prompt cannot be changed")
        with producer.on_device():
            producer.text.set(prompt, blend_chunks, live=live)

    @property
    def text_bytes(self) -> int:
        """Bytes of the text's keys and values on the device, which ``release_text`` frees."""
        producer = self._producer
        return 0 if producer is None else producer.text.nbytes

    def release_text(self) -> None:
        """Frees the keys and values of the text, 105 to 419 MB for the 14B model, for example while a video is paused.

        The next chunk computes them anew from the embeddings, in milliseconds. Any thread may call this at any time.
        """
        producer = self._producer
        if producer is not None:
            producer.text.release()

    def close(self) -> None:
        """Ends the stream and releases its device memory; afterwards ``next`` raises StopIteration.

        A chunk in progress in another thread, or in the callback that calls this, is finished and delivered first.
        Chunks that were dispatched can still be collected by ``PendingChunk.result``.
        """
        self._closed = True
        with self._turn:
            if not self._busy:
                self._release()

    @contextlib.contextmanager
    def _exclusive(self, what: str) -> Generator[None]:
        """Keeps other threads, and callbacks of this one, away from the queue and the device."""
        with self._turn:
            if self._busy:
                raise RuntimeError(f"{what} was called by a callback of the same stream, while a chunk is in progress")
            self._busy = True
            try:
                yield
            finally:
                self._busy = False
                if self._closed:
                    self._release()

    def _release(self) -> None:
        """Drops every reference to arrays on the device."""
        self._queue.clear()
        self._producer = self._history = self._origin = None
        self._on_close()

    def _next_chunk(self) -> Chunk | None:
        """The next chunk; ``None`` after the last one."""
        # Do not queue work after the first chunk until it is delivered, to minimise the time to the first frame.
        self._fill_queue(1 + self._lookahead if self._last_done else 1)
        if not self._queue:
            return None
        first = self._queue[0]
        self._fetch(first)
        if first.index == self._start:
            # Done before the caller gets the first chunk; otherwise the device would idle until the next call.
            self._fill_queue(1 + self._lookahead)
        return self._deliver(first)

    def _take(self, chunk: Dispatched) -> Chunk:
        """The chunk of ``PendingChunk.result``."""
        with self._exclusive("result()"):
            return self._deliver(chunk)

    def _deliver(self, chunk: Dispatched) -> Chunk:
        """Waits for a chunk and those before it, announces them, and takes it out of the queue."""
        # A closed stream has no queue, but a chunk whose handle is held can still be collected.
        for each in [*(other for other in self._queue if other.index < chunk.index), chunk]:
            arrived = self._fetch(each)
            if self._announced < each.index:
                self._announced = each.index
                self._on_chunk(arrived)
        if chunk in self._queue:
            self._queue.remove(chunk)
        chunk.before = None
        return self._fetch(chunk)

    def _fetch(self, chunk: Dispatched) -> Chunk:
        """Waits until a chunk is in host memory. It stays in the queue, so an interrupted wait loses nothing."""
        if chunk.chunk is None:
            request = self.request
            with request.explained_errors():
                chunk.fetch(previous=self._last_done, cut_to=request.num_frames if request.exact_frames else None)
            self._last_done = time.perf_counter()
        assert chunk.chunk is not None, "it has arrived"
        return chunk.chunk

    def _fill_queue(self, count: int) -> None:
        """Dispatches chunks until ``count`` are in the queue, or the video has no more."""
        while len(self._queue) < count and self.has_more:
            self._dispatch()

    def _dispatch(self) -> Dispatched:
        """Dispatches the next chunk and appends it to the queue."""
        assert self._producer is not None, "the stream is open"
        before = self._now()
        try:
            # This calls ``on_step`` and takes nearly all of the time, so this is where exceptions arrive.
            work, history = self._producer.produce(before, self._on_step)
            chunk = Dispatched(before, work)
        except BaseException:
            self._producer.text.go_back(before.timeline)  # nothing else has changed
            raise
        # No call in between, so no signal either: the chunk is dispatched with all of these, or not at all.
        self._history, self.index = history, before.index + 1
        self._queue.append(chunk)
        return chunk

    def _now(self) -> Moment:
        """The stream before the next chunk to be dispatched."""
        assert self._producer is not None
        assert self._history is not None
        return Moment(index=self.index, history=self._history, timeline=self._producer.text.timeline())
