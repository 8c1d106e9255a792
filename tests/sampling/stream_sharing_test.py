"""A stream survives callbacks that raise, threads that share it, and being closed; each chunk comes once, in order."""

import dataclasses
import gc
import threading

import jax
import numpy as np
import pytest

import helios_jax as hx
from helios_jax.sampling.inputs import SampleInputs

SMALL = {"height": 64, "width": 64, "steps": (1, 1, 1), "max_text_tokens": 8}
FOX, DOG = "a fox", "a dog"

pytestmark = pytest.mark.usefixtures("undecoded")


class Once:
    """A callback that raises the first time that it is called with one of the given keys."""

    def __init__(self, *keys) -> None:
        self.left, self.seen = set(keys), []

    def __call__(self, key) -> None:
        self.seen.append(key)
        if key in self.left:
            self.left.remove(key)
            raise RuntimeError(f"callback at {key}")


def drain(stream) -> tuple[list, int]:
    """All chunks of a stream whose callbacks raise, and how often they did."""
    chunks, errors = [], 0
    while True:
        try:
            chunks.append(next(stream))
        except RuntimeError:
            errors += 1
        except StopIteration:
            return chunks, errors


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_callbacks_that_raise_lose_and_repeat_nothing(distilled, lookahead):
    schedule = hx.PromptSchedule(prompts=[FOX, DOG], chunks_per_prompt=(1, 3), blend_chunks=3)
    expected = [chunk.latents for chunk in distilled.stream(schedule, num_frames=132, **SMALL)]
    on_chunk, on_step = Once(0, 2, 3), Once((0, 1), (1, 0), (1, 2), (3, 1))
    stream = distilled.stream(
        schedule,
        num_frames=132,
        lookahead=lookahead,
        on_chunk=lambda chunk: on_chunk(chunk.index),
        on_step=lambda info: on_step((info.chunk, info.level)),
        **SMALL,
    )
    chunks, errors = drain(stream)
    assert [chunk.index for chunk in chunks] == [0, 1, 2, 3]
    np.testing.assert_array_equal([chunk.latents for chunk in chunks], expected)
    assert errors == 7
    # The callback got every chunk, once, also those with which it raised.
    assert on_chunk.seen == [0, 1, 2, 3]


@pytest.mark.parametrize("lookahead", [0, 2])
def test_threads_share_the_chunks(distilled, lookahead):
    expected = [chunk.latents for chunk in distilled.stream(FOX, num_frames=330, **SMALL)]
    announced = []
    stream = distilled.stream(
        FOX, num_frames=330, lookahead=lookahead, on_chunk=lambda chunk: announced.append(chunk.index), **SMALL
    )
    taken: list[list] = [[] for _ in range(4)]
    threads = [threading.Thread(target=chunks.extend, args=(stream,)) for chunks in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert announced == list(range(10))
    for chunks in taken:
        indices = [chunk.index for chunk in chunks]
        assert indices == sorted(indices)
    found = {chunk.index: chunk.latents for chunks in taken for chunk in chunks}
    assert sum(map(len, taken)) == len(found) == 10
    np.testing.assert_array_equal([found[index] for index in range(10)], expected)


def test_prompt_is_set_while_a_chunk_is_in_progress(distilled):
    """Another thread does not wait for the chunk, and its text takes effect in the next one."""
    expected = distilled.stream(FOX, num_frames=99, **SMALL)
    first = next(expected).latents
    expected.set_prompt(DOG, blend_chunks=0)
    later = [chunk.latents for chunk in expected]

    started, changed = threading.Event(), threading.Event()

    def hold(info) -> None:
        if info.chunk == 0:
            started.set()
            assert changed.wait(60)

    stream = distilled.stream(FOX, num_frames=99, on_step=hold, **SMALL)
    chunks = []
    thread = threading.Thread(target=chunks.extend, args=(stream,))
    thread.start()
    assert started.wait(60)
    stream.set_prompt(DOG, blend_chunks=0)
    changed.set()
    thread.join()
    np.testing.assert_array_equal([chunk.latents for chunk in chunks], [first, *later])


def test_next_in_a_callback_is_refused(distilled):
    errors = []

    def on_chunk(_) -> None:
        with pytest.raises(RuntimeError, match="by a callback of the same stream") as error:
            next(stream)
        errors.append(error)

    stream = distilled.stream(FOX, num_frames=66, on_chunk=on_chunk, **SMALL)
    assert [chunk.index for chunk in stream] == [0, 1]
    assert len(errors) == 2


@pytest.mark.slow
def test_close_ends_the_stream_and_frees_the_device(distilled):
    def on_device() -> int:
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    before = on_device()
    with distilled.stream(FOX, num_frames=None, lookahead=2, **SMALL) as stream:
        next(stream)
        assert on_device() > before
    assert on_device() == before
    assert next(stream, None) is None
    assert list(stream) == []
    with pytest.raises(ValueError, match="the stream has ended: its prompt cannot be changed"):
        stream.set_prompt(DOG)
    stream.close()
    assert repr(stream) == "Stream(3 chunks, no end, 64x64, batch 1, closed)"

    finished = distilled.stream(FOX, num_frames=33, **SMALL)
    assert [chunk.index for chunk in finished] == [0]
    assert on_device() == before


def test_bar_is_closed_with_the_stream(distilled, capsys):
    """An error message does not follow the bar on its line."""
    once = Once(1)
    with pytest.raises(RuntimeError, match="callback at 1"):
        distilled(FOX, num_frames=99, on_chunk=lambda chunk: once(chunk.index), **SMALL)
    assert capsys.readouterr().err.endswith("\n")
    with distilled.stream(FOX, num_frames=99, progress=True, **SMALL) as stream:
        next(stream)
    assert capsys.readouterr().err.endswith("\n")


def test_close_in_a_callback_delivers_the_chunk(distilled):
    stream = distilled.stream(FOX, num_frames=None, on_step=lambda info: info.chunk == 1 and stream.close(), **SMALL)
    assert [chunk.index for chunk in stream] == [0, 1]


def test_closed_pipeline(distilled):
    with dataclasses.replace(distilled) as pipe:
        out = pipe(FOX, num_frames=33, progress=False, **SMALL)
    assert repr(pipe) == "HeliosPipeline(closed)"
    for use in (pipe.stream, lambda: pipe.save("nowhere"), pipe.describe):
        with pytest.raises(ValueError, match="the pipeline is closed: load it again"):
            use()
    # Networks that another pipeline holds stay.
    np.testing.assert_array_equal(distilled(FOX, num_frames=33, progress=False, **SMALL).latents, out.latents)


def test_representations_are_short(distilled):
    stream = distilled.stream(FOX, num_frames=66, **SMALL)
    assert repr(stream) == "Stream(0 of 2 chunks, 64x64, batch 1)"
    chunk = next(stream)
    assert repr(chunk).startswith(
        "Chunk(index=0, frames=uint8 [1, 33, 64, 64, 3], latents=float32 [1, 9, 8, 8, 16], seconds="
    )
    assert repr(distilled) == "HeliosPipeline(Distilled, 188k parameters, float32, vae float32, CPU)"
    inputs = SampleInputs(prompt_embeds=np.zeros((1, 8, 24), np.float32), video=np.zeros((40, 64, 64, 3), np.uint8))
    request = distilled._defaults.resolve(inputs, hx.SampleSettings(height=64, width=64))
    named = (inputs, request, stream, chunk, distilled, distilled.transformer, distilled.text_encoder)
    assert max(len(repr(value)) for value in (*named, hx.RecordedNoise(draws={"a": np.zeros(9999)}))) < 600


def test_description(distilled):
    lines = distilled.describe().splitlines()
    assert lines[0] == "Helios Distilled on CPU"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["transformer", "vae", "text_encoder", "together"]
    sizes = [
        sum(leaf.nbytes for leaf in jax.tree.leaves(network.params))
        for network in (distilled.transformer, distilled.vae)
    ]
    assert lines[1] == f"  transformer: 188k parameters, float32, {sizes[0] / 1e3:.4g} kB"
    assert lines[2].endswith(f"{sizes[1] / 1e3:.4g} kB")


def test_too_little_memory_is_explained(distilled, monkeypatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\n" * 200)

    monkeypatch.setattr("helios_jax.sampling.chunk.denoise_step", full)
    stream = distilled.stream(FOX, num_frames=33, **SMALL)
    with pytest.raises(
        MemoryError, match=r"^out of memory while sampling 64x64, batch 1 on CPU: choose a smaller"
    ) as error:
        next(stream)
    assert len(str(error.value)) < 400
    monkeypatch.undo()


def test_other_errors_of_the_device_pass(distilled, monkeypatch):
    def broken(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr("helios_jax.sampling.chunk.denoise_step", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        next(distilled.stream(FOX, num_frames=33, **SMALL))
