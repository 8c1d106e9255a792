"""The chunks of a stream: dispatched to the device, then in host memory."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from helios_jax.context import History
from helios_jax.sampling.brief import brief_fields
from helios_jax.sampling.finite import Verdict, require_finite
from helios_jax.sampling.timeline import TimelineState
from helios_jax.typing import Array, Float, UInt8


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
class Moment:
    """What a stream has on the device between two chunks. The arrays are never donated, so a moment can be kept.

    Attributes:
        index: The next chunk.
        history: Its context.
        timeline: Its text and that of later chunks.
    """

    index: int
    history: History
    timeline: TimelineState


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DeviceChunk:
    """What the device computes for a chunk.

    Attributes:
        pixels: The frames.
        latents: The latents.
        verdicts: Whether its parts are finite.
        started: When its work began.
    """

    pixels: UInt8[Array, "B F H W 3"]
    latents: Float[Array, "B T h w C"]
    verdicts: list[Verdict]
    started: float


class Dispatched:
    """A chunk in the queue of a stream.

    Args:
        before: The stream before this chunk.
        work: The arrays of the chunk.

    Attributes:
        before: As above; ``None`` once the chunk is taken.
        chunk: The chunk, once its frames are in host memory.
    """

    def __init__(self, before: Moment, work: DeviceChunk) -> None:
        self.index = before.index
        self.before: Moment | None = before
        self.chunk: Chunk | None = None
        self._work: DeviceChunk | None = work

    def is_ready(self) -> bool:
        """Whether the device has finished the chunk."""
        work = self._work
        if work is None:
            return True
        arrays: list[Any] = [work.pixels, work.latents, *(flag for _, flag in work.verdicts)]
        return all(array.is_ready() for array in arrays)

    def fetch(self, *, previous: float, cut_to: int | None) -> None:
        """Waits until the frames are in host memory, as ``chunk``.

        Args:
            previous: When the chunk before arrived.
            cut_to: Frames that the video is cut to; ``None``: chunks stay whole.

        Raises:
            FloatingPointError: A part of the chunk is not finite.
        """
        work = self._work
        assert work is not None, "it is fetched once"
        parts, flags = zip(*work.verdicts, strict=True)
        frames, latents, flags = jax.device_get((work.pixels, work.latents, flags))
        require_finite(self.index, zip(parts, flags, strict=True))
        self.chunk = Chunk(
            index=self.index,
            frames=frames if cut_to is None else frames[:, : cut_to - self.index * frames.shape[1]],
            latents=np.asarray(latents, np.float32),
            seconds=time.perf_counter() - max(work.started, previous),
        )
        self._work = None  # only now: an interrupted wait loses nothing


class PendingChunk:
    """A chunk that has been dispatched to the device, as ``Stream.dispatch`` returns it.

    Args:
        chunk: The chunk.
        take: Waits for it and takes it out of the stream.

    Attributes:
        index: Number of the chunk.
    """

    # The stream's queue holds no handles: they refer to the stream, and in a cycle its memory would be freed late.
    def __init__(self, chunk: Dispatched, take: Callable[[Dispatched], Chunk]) -> None:
        self.index = chunk.index
        self._chunk = chunk
        self._take = take

    def __repr__(self) -> str:
        return f"PendingChunk(index={self.index}, is_ready={self.is_ready()})"

    def is_ready(self) -> bool:
        """Whether the device has finished the chunk, so that ``result`` waits only for the copy of its frames.

        Does not wait; any thread may call it at any time.
        """
        return self._chunk.is_ready()

    def result(self) -> Chunk:
        """Waits for the chunk and takes it: ``next`` of the stream yields the first chunk that has not been taken.

        Chunks arrive in order: those before this one are waited for as well and can be taken afterwards. ``on_chunk``
        of the stream is called once with each of them. Further calls return the same chunk at once. Other threads
        cannot dispatch chunks of the stream while this method waits; ``is_ready`` tells whether it would.

        Raises:
            FloatingPointError: A part of this chunk, or of one before it, is not finite.
            MemoryError: The device has too little memory.
            RuntimeError: A callback of the stream called this.
        """
        if self._chunk.before is None:
            assert self._chunk.chunk is not None, "it has been taken"
            return self._chunk.chunk
        return self._take(self._chunk)
