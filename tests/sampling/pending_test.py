"""Chunks that are dispatched and collected apart, steps that are cancelled, and what a stream frees when it waits."""

import types

import jax
import numpy as np
import pytest

import helios_jax as hx
from helios_jax.sampling.pending import Dispatched, PendingChunk
from helios_jax.sampling.stream_state import StreamState

SMALL = {"height": 64, "width": 64, "steps": (1, 1, 1), "max_text_tokens": 8}
FOX, DOG = "a fox", "a dog"

pytestmark = pytest.mark.usefixtures("undecoded")


def facts(state: StreamState) -> list:
    """Everything in a state, in a form that can be compared."""
    arrays = [state.frames, state.anchor, *state.timeline.arrays]
    places = {id(array): place for place, array in enumerate(state.timeline.arrays)}
    timeline = [places[id(getattr(state.timeline, name))] for name in ("old", "new", "shown")]
    changes = [(at, places[id(new)], weights) for at, (new, weights) in sorted(state.timeline.changes.items())]
    negative = None if state.negative is None else state.negative.tobytes()
    others = [state.index, state.timeline.chunk, state.timeline.weights, changes, state.settings, state.batch]
    return [
        *((array.dtype.name, array.shape, array.tobytes()) for array in arrays),
        *(timeline, *others, negative, state.conditioned, state.seeded, state.model),
    ]


def test_dispatched_chunks_are_those_of_next(distilled):
    schedule = hx.PromptSchedule(prompts=[FOX, DOG], chunks_per_prompt=(1, 3), blend_chunks=3)
    expected = list(distilled.stream(schedule, num_frames=132, **SMALL))
    seen = []
    stream = distilled.stream(schedule, num_frames=132, on_chunk=lambda chunk: seen.append(chunk.index), **SMALL)
    first, second = stream.dispatch(), stream.dispatch()
    assert (first.index, second.index, stream.index) == (0, 1, 2)
    assert seen == []
    # In any order, and next() yields the first that has not been taken.
    found = [second.result(), next(stream), stream.dispatch().result(), next(stream)]
    assert [chunk.index for chunk in found] == [1, 0, 2, 3]
    assert seen == [0, 1, 2, 3]
    assert first.result() is found[1]
    assert first.is_ready()
    for chunk in found:
        np.testing.assert_array_equal(chunk.latents, expected[chunk.index].latents)
        np.testing.assert_array_equal(chunk.frames, expected[chunk.index].frames)
    assert not stream.has_more
    with pytest.raises(ValueError, match="the stream has ended: there is no chunk 4 to dispatch"):
        stream.dispatch()
    assert next(stream, None) is None


def test_chunks_are_collected_after_close(distilled):
    expected = next(distilled.stream(FOX, num_frames=None, **SMALL))
    with distilled.stream(FOX, num_frames=None, **SMALL) as stream:
        pending = stream.dispatch()
    np.testing.assert_array_equal(pending.result().latents, expected.latents)
    with pytest.raises(ValueError, match="the stream has ended"):
        stream.dispatch()
    with pytest.raises(ValueError, match="the stream has ended: its state"):
        stream.state()


@pytest.mark.usefixtures("unchecked")
def test_chunk_is_ready_when_all_its_arrays_are():
    flags = {"pixels": False, "latents": False, "finite": False}
    arrays = {name: types.SimpleNamespace(is_ready=lambda name=name: flags[name]) for name in flags}
    work = types.SimpleNamespace(**arrays, verdicts=[(0, arrays["finite"])])
    chunk = PendingChunk(Dispatched(types.SimpleNamespace(index=5), work), lambda _: None)
    assert (chunk.index, chunk.is_ready()) == (5, False)
    for name in flags:
        flags.update(dict.fromkeys(flags, True) | {name: False})
        assert not chunk.is_ready()
    flags.update(dict.fromkeys(flags, True))
    assert repr(chunk) == "PendingChunk(index=5, is_ready=True)"


def test_callback_cannot_dispatch_or_collect(distilled):
    errors = []

    def on_chunk(_) -> None:
        for call in (stream.dispatch, stream.state, later.result):
            with pytest.raises(RuntimeError, match="by a callback of the same stream") as error:
                call()
            errors.append(str(error.value).split(" was")[0])

    stream = distilled.stream(FOX, num_frames=66, on_chunk=on_chunk, **SMALL)
    first, later = stream.dispatch(), stream.dispatch()
    first.result()
    assert errors == ["dispatch()", "state()", "result()"]


class Stop(Exception):
    """Raised by a callback to cancel a chunk."""


def test_cancel_at_every_step_leaves_the_stream_as_it_was(distilled):
    """In a blend, at each of the 12 steps of the first chunk and the 6 of a later one."""
    arguments = SMALL | {"steps": (2, 2, 2), "num_frames": 132}
    schedule = hx.PromptSchedule(prompts=[FOX, DOG], chunks_per_prompt=(1, 3), blend_chunks=3)
    expected = [chunk.latents for chunk in distilled.stream(schedule, **arguments)]
    stop_at: list = []

    def on_step(info) -> None:
        if [info.level, info.step] == stop_at:
            raise Stop

    stream = distilled.stream(schedule, on_step=on_step, **arguments)
    for chunk in range(3):
        before = facts(stream.state())
        steps = [(level, step) for level in range(3) for step in range(2 if chunk else 4)] if chunk != 1 else []
        for place in steps:
            stop_at[:] = place
            with pytest.raises(Stop):
                next(stream) if sum(place) % 2 else stream.dispatch()
            assert stream.index == chunk
            assert facts(stream.state()) == before
        stop_at.clear()
        np.testing.assert_array_equal(next(stream).latents, expected[chunk])


def test_prompt_after_a_cancelled_chunk_shows_in_that_chunk(distilled):
    expected = distilled.stream(FOX, num_frames=99, **SMALL)
    latents = [next(expected).latents]
    expected.set_prompt(DOG, blend_chunks=0)
    latents += [chunk.latents for chunk in expected]
    cancel = [True]

    def on_step(info) -> None:
        if info.chunk == 1 and cancel:
            cancel.clear()
            raise Stop

    stream = distilled.stream(FOX, num_frames=99, on_step=on_step, **SMALL)
    found = [next(stream).latents]
    with pytest.raises(Stop):
        next(stream)
    stream.set_prompt(DOG, blend_chunks=0)
    np.testing.assert_array_equal([*found, *(chunk.latents for chunk in stream)], latents)


def test_prompt_set_while_a_chunk_is_cancelled_keeps_its_place(distilled):
    """A prompt that arrives during a chunk is that of the next one, also if the chunk is sampled a second time."""
    expected = distilled.stream(FOX, num_frames=99, **SMALL)
    latents = [next(expected).latents, next(expected).latents]
    expected.set_prompt(DOG, blend_chunks=0)
    latents.append(next(expected).latents)
    cancel = [True]

    def on_step(info) -> None:
        if info.chunk == 1 and cancel:
            cancel.clear()
            stream.set_prompt(DOG, blend_chunks=0)
            raise Stop

    stream = distilled.stream(FOX, num_frames=99, on_step=on_step, **SMALL)
    found = [next(stream).latents]
    with pytest.raises(Stop):
        next(stream)
    np.testing.assert_array_equal([*found, *(chunk.latents for chunk in stream)], latents)


def test_live_prompt_shows_at_once(distilled):
    """A blend over 2 chunks is a cut when it is live, and otherwise shows the old prompt in one more chunk."""
    unchanged = [chunk.latents for chunk in distilled.stream(FOX, num_frames=66, **SMALL)]
    for live in (False, True):
        stream = distilled.stream(FOX, num_frames=66, **SMALL)
        next(stream)
        stream.set_prompt(DOG, blend_chunks=2, live=live)
        assert stream.state().timeline.changes[1][1] == ((1.0,) if live else (0.0, 1.0))
        assert (next(stream).latents != unchanged[1]).any() == live


def test_weighted_texts_are_averaged(distilled):
    """Compared with the mean of the embeddings in NumPy, float64."""
    stream = distilled.stream(FOX, num_frames=None, **SMALL)
    encoder = stream._producer.text._prompts
    fox, dog = (np.asarray(encoder.encode(text), np.float64) for text in (FOX, DOG))
    mixed = np.asarray(encoder.encode([(FOX, 3), (DOG, 1.0), ("not seen", 0)]))
    np.testing.assert_allclose(mixed, 0.75 * fox + 0.25 * dog, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(encoder.encode([(DOG, 0.3)]), encoder.encode(DOG))
    stream.set_prompt([(FOX, 1), (DOG, 1)], blend_chunks=0)
    assert next(stream).latents.shape == (1, 9, 8, 8, 16)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([(FOX, 1)] * 5, "has 5 weighted texts; at most 4"),
        ([(FOX, -1)], "the weight of 'a fox'=-1 must be a finite number"),
        ([(FOX, float("nan"))], "the weight of 'a fox'=nan must be"),
        ([(FOX, True)], "the weight of 'a fox'=True must be"),
        ([(FOX, 0), (DOG, 0)], "the weights sum to 0.0; at least one must be above 0"),
        ([(FOX, 1), DOG], "has the entry 'a dog'; weighted texts are pairs"),
        ([(FOX, 1, 2)], "weighted texts are pairs of a text and its weight"),
        ([(3, 1)], "weighted texts are pairs"),
        ([("\ud800", 1)], "not valid Unicode"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_weights_are_checked(distilled, prompt, message):
    with pytest.raises(ValueError, match=message):
        distilled.stream(FOX, num_frames=None, **SMALL).set_prompt(prompt)


def test_released_text_is_projected_again(distilled):
    expected = [chunk.latents for chunk in distilled.stream(FOX, num_frames=99, **SMALL)]
    stream = distilled.stream(FOX, num_frames=99, **SMALL)
    assert stream.text_bytes == 0
    found = [next(stream).latents]
    config = distilled.transformer.config
    # Keys and values of 8 tokens in every block, float32.
    assert stream.text_bytes == 2 * 8 * config.num_layers * config.num_heads * config.head_dim * 4
    before = sum(array.nbytes for array in jax.live_arrays())
    size = stream.text_bytes
    stream.release_text()
    assert before - sum(array.nbytes for array in jax.live_arrays()) == size
    assert stream.text_bytes == 0
    np.testing.assert_array_equal([*found, *(chunk.latents for chunk in stream)], expected)
    stream.release_text()


def test_streams_of_one_size_share_their_rope_tables(distilled):
    def tables(**arguments) -> tuple[hx.HeliosPipeline, tuple]:
        stream = distilled.stream(FOX, num_frames=None, **SMALL | arguments)
        return stream, stream._producer._shared_ropes

    first, shared = tables()
    second, found = tables(seed=5)
    assert all(a is b for a, b in zip(shared, found, strict=True))
    wider, others = tables(width=128)
    assert not any(a is b for a in shared for b in others)
    first.close(), second.close(), wider.close()
