"""A progress bar for a stream: steps dispatched, frames per second."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from helios_jax.sampling.chunk import StepInfo

if TYPE_CHECKING:
    from helios_jax.sampling.stream import Chunk, Stream


class Progress:
    """Counts steps as they are dispatched and shows the speed of the last chunk; silent when not enabled.

    A context manager: leaving it closes the bar.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._bar: Any = None
        self._num_chunks: int | None = None

    def start(self, stream: "Stream") -> None:
        """Opens the bar."""
        if self._enabled:
            from tqdm.auto import tqdm

            self._num_chunks = stream.request.num_chunks
            # The first step of every level waits for its program, which can take minutes to compile.
            self._bar = tqdm(total=stream.num_steps, unit="step", desc="compiling", file=sys.stderr)

    def write(self, line: str) -> None:
        """Prints a line to standard output, above the bar if there is one."""
        if self._bar is None:
            print(line, flush=True)
            return
        with self._bar.external_write_mode(file=sys.stdout):
            print(line, flush=True)

    def close(self) -> None:
        """Closes the bar; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def on_step(self, then: Callable[[StepInfo], None] | None) -> Callable[[StepInfo], None]:
        """A step callback that moves the bar and calls ``then``."""

        def call(info: StepInfo) -> None:
            bar = self._bar
            # A chunk that was interrupted is sampled again, so there may be more steps than planned.
            if bar is not None and (bar.total is None or bar.n < bar.total):
                bar.update()
            if then is not None:
                then(info)

        return call

    def on_chunk(self, then: "Callable[[Chunk], None] | None") -> "Callable[[Chunk], None]":
        """A chunk callback that shows the speed and calls ``then``."""

        def call(chunk: "Chunk") -> None:
            if self._bar is not None:
                frames = chunk.frames.shape[0] * chunk.frames.shape[1]
                done = chunk.index + 1
                total = "" if self._num_chunks is None else f" of {self._num_chunks}"
                self._bar.set_description(f"{done}{total} chunk{'s' if done != 1 or total else ''}", refresh=False)
                self._bar.set_postfix_str(f"{frames / chunk.seconds:.2f} frames/s")
                if done == self._num_chunks:
                    self.close()
            if then is not None:
                then(chunk)

        return call
