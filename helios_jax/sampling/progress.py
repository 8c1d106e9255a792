"""A progress bar for a stream: steps dispatched, frames per second."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from helios_jax.sampling.chunk import StepInfo

if TYPE_CHECKING:
    from helios_jax.sampling.stream import Chunk, Stream


class Progress:
    """Counts steps as they are dispatched and shows the speed of the last chunk; silent when not enabled."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._bar: Any = None
        self._last: int | None = None

    def start(self, stream: "Stream") -> None:
        """Opens the bar."""
        if self._enabled:
            from tqdm.auto import tqdm

            self._last = stream.request.num_chunks
            self._bar = tqdm(total=stream.num_steps, unit="step", desc="chunk 0")

    def on_step(self, then: Callable[[StepInfo], None] | None) -> Callable[[StepInfo], None]:
        """A step callback that moves the bar and calls ``then``."""

        def call(info: StepInfo) -> None:
            if self._bar is not None:
                self._bar.update()
            if then is not None:
                then(info)

        return call

    def on_chunk(self, then: "Callable[[Chunk], None] | None") -> "Callable[[Chunk], None]":
        """A chunk callback that shows the speed and calls ``then``."""

        def call(chunk: "Chunk") -> None:
            if self._bar is not None:
                frames = chunk.frames.shape[0] * chunk.frames.shape[1]
                self._bar.set_description(f"chunk {chunk.index + 1}", refresh=False)
                self._bar.set_postfix_str(f"{frames / chunk.seconds:.2f} frames/s")
                if chunk.index + 1 == self._last:
                    self._bar.close()
            if then is not None:
                then(chunk)

        return call
