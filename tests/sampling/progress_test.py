"""The progress bar: what it says while programs compile, its count, and lines next to it."""

import io
import types

import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.sampling.chunk import StepInfo
from helios_jax.sampling.progress import Progress
from helios_jax.sampling.stream import Chunk

STEP = StepInfo(chunk=0, level=0, step=0, steps=2, timestep=1.0, latents=jnp.zeros((1, 9, 2, 2, 16)))


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard output and error of a terminal, in one buffer. Between set-up and test pytest sets its own."""
    screen = io.StringIO()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    return screen


def stream(num_chunks: int | None, num_steps: int | None) -> types.SimpleNamespace:
    return types.SimpleNamespace(request=types.SimpleNamespace(num_chunks=num_chunks), num_steps=num_steps)


def chunk(index: int) -> Chunk:
    latents = np.zeros((1, 9, 2, 2, 16), np.float32)
    return Chunk(index=index, frames=np.zeros((1, 33, 2, 2, 3), np.uint8), latents=latents, seconds=3.0)


def test_a_bar_counts_chunks_and_keeps_lines_apart(monkeypatch):
    screen, passed = terminal(monkeypatch), []
    with Progress(enabled=True) as progress:
        progress.start(stream(2, 4))
        assert "compiling:   0%" in screen.getvalue()
        on_step, on_chunk = progress.on_step(passed.append), progress.on_chunk(passed.append)
        for index in range(2):
            on_step(STEP)
            on_step(STEP)
            on_chunk(chunk(index))
            progress.write(f"chunk {index} is done")
        on_step(STEP)  # a chunk that is sampled again counts no further
    text = screen.getvalue()
    assert "1 of 2 chunks:  50%" in text
    assert "2 of 2 chunks: 100%" in text
    assert "3 of 2" not in text
    assert "5/4" not in text
    # A line begins where the bar was erased, or on a line of its own.
    assert "\rchunk 0 is done\n" in text
    assert "\nchunk 1 is done\n" in text
    assert [type(each).__name__ for each in passed] == ["StepInfo", "StepInfo", "Chunk"] * 2 + ["StepInfo"]


def test_no_bar_where_nobody_looks(capsys):
    with Progress(enabled=False) as progress:
        progress.start(stream(2, 4))
        progress.on_step(None)(STEP)
        progress.on_chunk(None)(chunk(0))
        progress.write("chunk 0")
    assert capsys.readouterr() == ("chunk 0\n", "")


def test_a_stream_without_end(monkeypatch):
    screen = terminal(monkeypatch)
    with Progress(enabled=True) as progress:
        progress.start(stream(None, None))
        for index in range(2):
            progress.on_step(None)(STEP)
            progress.on_chunk(None)(chunk(index))
            progress.on_step(None)(STEP)
    assert "2 chunks" in screen.getvalue()
