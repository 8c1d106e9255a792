"""What a stream promises: constant memory, the frames of a whole call, prompts that change, and callbacks."""

import dataclasses
import gc
import itertools
import time
import tracemalloc

import jax
import numpy as np
import psutil
import pytest

import helios_jax as hx
from helios_jax.diffusion import level_schedule
from helios_jax.models import tokenization

SMALL = {"height": 64, "width": 64, "steps": (1, 1, 1), "max_text_tokens": 8}
FOX, DOG = "a fox", "a dog"


def take(stream, chunks: int) -> np.ndarray:
    """Latents of the next chunks, [chunks, B, T, h, w, C]."""
    return np.stack([chunk.latents for chunk in itertools.islice(stream, chunks)])


@pytest.mark.slow
def test_memory_is_that_of_the_first_chunks(distilled):
    """From chunk 3 to 53 device memory grows by no byte and the process stays flat; from 33 on Python keeps nothing."""
    stream, process = distilled.stream(FOX, num_frames=None, **SMALL), psutil.Process()
    on_device, in_python, resident = [], [], []
    try:
        for chunk in stream:
            if chunk.index % 10 == 3:
                gc.collect()
                on_device.append(sum(array.nbytes for array in jax.live_arrays()))
                resident.append(process.memory_info().rss)
                if chunk.index >= 33:  # tracing takes longer than sampling
                    tracemalloc.start()
                    in_python.append(tracemalloc.get_traced_memory()[0])
            if chunk.index == 53:
                break
    finally:
        tracemalloc.stop()
    assert len(on_device) == 6
    assert len(in_python) == 3
    assert set(on_device) == {on_device[0]}
    # 20 kept latents would be 0.7 MB, 50 kept chunks of frames 20 MB. Allocators keep a few MB of freed blocks.
    assert in_python[-1] - in_python[0] < 20 * chunk.latents.nbytes / 10
    assert resident[-1] - resident[0] < 50 * chunk.frames.nbytes / 4


@pytest.mark.parametrize(("wanted", "chunks", "frames"), [(1, 1, 33), (33, 1, 33), (34, 2, 65), (99, 3, 97)])
def test_call_is_the_whole_stream_cut_to_4k_plus_1(distilled, wanted, chunks, frames):
    out = distilled(FOX, num_frames=wanted, progress=False, **SMALL)
    streamed = list(distilled.stream(FOX, num_frames=wanted, **SMALL))
    assert [chunk.index for chunk in streamed] == list(range(chunks))
    assert all(chunk.frames.shape == (1, 33, 64, 64, 3) and chunk.frames.dtype == np.uint8 for chunk in streamed)
    assert all(chunk.latents.shape == (1, 9, 8, 8, 16) and chunk.latents.dtype == np.float32 for chunk in streamed)
    np.testing.assert_array_equal(out.frames, np.concatenate([c.frames for c in streamed], 1)[:, :frames])
    np.testing.assert_array_equal(out.latents, np.concatenate([c.latents for c in streamed], 1))


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(
    ("wanted", "of_chunks"), [(1, [1]), (33, [33]), (34, [33, 1]), (66, [33, 33]), (70, [33, 33, 4])]
)
def test_exact_frames(distilled, wanted, of_chunks):
    """A call and a stream have the number of frames that is wanted; the chunks and their latents stay whole."""
    out = distilled(FOX, num_frames=wanted, exact_frames=True, progress=False, **SMALL)
    streamed = list(distilled.stream(FOX, num_frames=wanted, exact_frames=True, **SMALL))
    assert [chunk.frames.shape[1] for chunk in streamed] == of_chunks
    assert out.frames.shape[1] == wanted
    published = distilled(FOX, num_frames=wanted, progress=False, **SMALL)
    np.testing.assert_array_equal(out.latents, published.latents)
    np.testing.assert_array_equal(out.latents, np.concatenate([chunk.latents for chunk in streamed], 1))


@pytest.mark.usefixtures("undecoded")
def test_stream_without_end_goes_on(distilled):
    stream = distilled.stream(FOX, num_frames=None, **SMALL)
    bounded = distilled.stream(FOX, num_frames=99, **SMALL)
    np.testing.assert_array_equal(take(stream, 3), take(bounded, 3))
    assert next(stream).index == 3
    assert next(bounded, None) is None


@pytest.mark.usefixtures("undecoded")
def test_chunks_continue_each_other(distilled):
    """The second chunk depends on the first and not on its noise alone."""
    noise = hx.KeyNoise(key=jax.random.key(0))

    class SameForEveryChunk:
        def normal(self, name, shape):
            return noise.normal("chunk0" + name[6:], shape)

        uniform = noise.uniform

    stream = distilled.stream(FOX, num_frames=66, noise=SameForEveryChunk(), amplify_first_chunk=False, **SMALL)
    first, second = take(stream, 2)
    assert np.abs(first - second).max() > 0.01


@pytest.mark.usefixtures("undecoded")
def test_seed_decides_the_video(distilled):
    first, again, other = (take(distilled.stream(FOX, num_frames=66, seed=s, **SMALL), 2) for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.1


@pytest.mark.slow
def test_sample_of_a_batch_is_what_it_would_be_alone(distilled):
    pair = distilled([FOX, DOG], num_frames=66, progress=False, **SMALL)
    alone = distilled(FOX, num_frames=66, progress=False, **SMALL)
    assert pair.frames.shape == (2, 65, 64, 64, 3)
    np.testing.assert_allclose(pair.latents[0], alone.latents[0], atol=1e-4)
    assert np.abs(pair.frames[0].astype(int) - alone.frames[0]).max() <= 1
    assert np.abs(pair.latents[1] - alone.latents[0]).mean() > 0.1


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("blend", [0, 1, 3])
def test_live_prompt_equals_schedule(distilled, blend):
    schedule = hx.PromptSchedule(prompts=[FOX, DOG], chunks_per_prompt=(2, 3), blend_chunks=blend)
    written = take(distilled.stream(schedule, num_frames=None, **SMALL), 5)
    stream = distilled.stream(FOX, num_frames=None, **SMALL)
    before = take(stream, 2)
    stream.set_prompt(DOG, blend_chunks=blend)
    np.testing.assert_array_equal(np.concatenate([before, take(stream, 3)]), written)

    unchanged = take(distilled.stream(FOX, num_frames=None, **SMALL), 5)
    differs = [bool((written[i] != unchanged[i]).any()) for i in range(5)]
    # The first chunk of a blend still shows the old prompt.
    assert differs == [False, False, blend < 2, True, True]


@pytest.mark.usefixtures("undecoded")
def test_schedule_through_a_call(distilled):
    schedule = hx.PromptSchedule(prompts=[FOX, DOG], chunks_per_prompt=1, blend_chunks=0)
    out = distilled(schedule, num_frames=66, progress=False, **SMALL)
    written = np.concatenate(take(distilled.stream(schedule, num_frames=66, **SMALL), 2), axis=1)
    np.testing.assert_array_equal(out.latents, written)


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("convert", [lambda x: x, np.asarray, lambda x: np.asarray(x, np.float64)])
def test_embeddings_in_place_of_text(distilled, convert):
    fox, dog = (convert(distilled.text_encoder([text], 8)) for text in (FOX, DOG))
    with_text = distilled.stream(FOX, num_frames=66, **SMALL)
    with_embeds = dataclasses.replace(distilled, text_encoder=None).stream(prompt_embeds=fox, num_frames=66, **SMALL)
    np.testing.assert_array_equal(next(with_text).latents, next(with_embeds).latents)
    with_text.set_prompt(DOG, blend_chunks=0)
    with_embeds.set_prompt(dog, blend_chunks=0)
    np.testing.assert_array_equal(next(with_text).latents, next(with_embeds).latents)
    with pytest.raises(ValueError, match="without a text encoder: set_prompt needs embeddings"):
        with_embeds.set_prompt(DOG)


@pytest.mark.usefixtures("undecoded")
def test_embeddings_are_rounded_to_the_models_dtype(bfloat16):
    """A bf16 model takes fp32 embeddings, such as another program saves, at the start and as a new prompt."""
    embeds = np.asarray(bfloat16.text_encoder([FOX], 8), np.float32)
    stream = bfloat16.stream(prompt_embeds=embeds, num_frames=None, **SMALL)
    stream.set_prompt(embeds, blend_chunks=0)
    np.testing.assert_array_equal(take(stream, 1), take(bfloat16.stream(FOX, num_frames=None, **SMALL), 1))


@pytest.mark.usefixtures("undecoded")
def test_one_new_prompt_is_for_every_video_of_the_batch(distilled):
    stream = distilled.stream([FOX, DOG], num_frames=None, **SMALL)
    stream.set_prompt(DOG, blend_chunks=0)
    np.testing.assert_array_equal(take(stream, 1), take(distilled.stream([DOG, DOG], num_frames=None, **SMALL), 1))


@pytest.mark.slow
@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(("scale", "batch"), [(1.0, 2), (5.0, 1)], ids=["batch", "guided"])
def test_one_padded_key_gives_the_video_of_all(pipelines, monkeypatch, scale, batch):
    """160 tokens of text, of which 128 have keys, through a blend of prompts."""
    arguments = SMALL | {"max_text_tokens": 160, "num_frames": None, "steps": 3, "guidance_scale": scale}

    def run() -> tuple[np.ndarray, tuple[int, int]]:
        stream = pipelines("base").stream([FOX, DOG][:batch], "", **arguments)
        first = take(stream, 1)
        stream.set_prompt("a cat on a wall", blend_chunks=3)
        return np.concatenate([first, take(stream, 3)]), keys_of(stream)

    kept, (keys, count) = run()
    assert (keys, count) == (128, 33)
    monkeypatch.setattr(tokenization, "_KEY_COUNTS", ())
    every, (keys, count) = run()
    assert (keys, count) == (160, 1)
    assert np.abs(every[3] - every[0]).mean() > 0.01
    np.testing.assert_allclose(kept, every, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("undecoded")
def test_embeddings_that_differ_to_the_end_keep_all_keys(pipelines):
    embeds = np.random.default_rng(0).standard_normal((1, 160, 24), np.float32)
    arguments = SMALL | {"num_frames": 33, "steps": 1, "guidance_scale": 1.0}
    stream = pipelines("base").stream(prompt_embeds=embeds, **arguments)
    next(stream)
    assert keys_of(stream) == (160, 1)


def keys_of(stream) -> tuple[int, int]:
    """Number of keys of the text in use, and how many tokens the last one stands for."""
    projected = stream._producer.text._projected
    return projected.k.shape[2], projected.last_key_count


@pytest.mark.usefixtures("undecoded")
def test_new_prompt_must_fit_the_batch(distilled):
    stream = distilled.stream(FOX, num_frames=None, **SMALL)
    with pytest.raises(ValueError, match="the new prompt has 2 texts for a batch of 1"):
        stream.set_prompt([FOX, DOG])
    with pytest.raises(ValueError, match=r"the new prompt has shape \(2, 8, 24\); \[1, tokens, 24\] is needed"):
        stream.set_prompt(np.zeros((2, 8, 24), np.float32))
    with pytest.raises(ValueError, match=r"embeddings are float32\[1, 7, 24\], those in use float32\[1, 8, 24\]"):
        stream.set_prompt(np.zeros((1, 7, 24), np.float32))
    with pytest.raises(ValueError, match="blend_chunks=-1"):
        stream.set_prompt(DOG, blend_chunks=-1)
    unchanged = take(distilled.stream(FOX, num_frames=None, **SMALL), 1)
    np.testing.assert_array_equal(take(stream, 1), unchanged)


@pytest.mark.usefixtures("undecoded")
def test_steps_are_reported_as_they_are_taken(distilled):
    """The network gets the integer part of the published timesteps; the first chunk takes twice the steps."""
    seen, finished = [], []
    arguments = SMALL | {"steps": (2, 2, 2), "num_frames": 66}
    stream = distilled.stream(FOX, on_step=seen.append, on_chunk=lambda c: finished.append((c, len(seen))), **arguments)
    chunks = list(stream)
    # Tokens that determine mu: 9 frames of 1x1, 2x2 and 4x4 patches; a level counts those of the level below.
    schedules = {
        amplify: [
            level_schedule(distilled.scheduler, level, 2, num_tokens=tokens, amplify=amplify).timesteps
            for level, tokens in enumerate((9, 9, 36))
        ]
        for amplify in (True, False)
    }
    expected = [
        (chunk, level, step, len(schedules[chunk == 0][level]), float(np.floor(t)))
        for chunk in (0, 1)
        for level in range(3)
        for step, t in enumerate(schedules[chunk == 0][level])
    ]
    assert [(i.chunk, i.level, i.step, i.steps, i.timestep) for i in seen] == expected
    assert len(seen) == stream.num_steps == 12 + 6
    assert all(chunk is given for chunk, (given, _) in zip(chunks, finished, strict=True))
    assert [steps for _, steps in finished] == [12, 18]


@pytest.mark.usefixtures("undecoded")
def test_step_callback_sees_the_sample(distilled):
    last = {}
    stream = distilled.stream(
        FOX, num_frames=33, on_step=lambda i: last.update({i.level: np.array(i.latents)}), **SMALL
    )
    chunk = next(stream)
    assert [last[level].shape for level in range(3)] == [(1, 9, side, side, 16) for side in (2, 4, 8)]
    np.testing.assert_array_equal(last[2], chunk.latents)


@pytest.mark.usefixtures("undecoded")
def test_progress_shows_frames_per_second(distilled, capsys):
    distilled(FOX, num_frames=66, **SMALL)
    shown = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert "2 of 2 chunks: 100%" in shown
    assert "9/9" in shown
    assert "frames/s" in shown
    distilled(FOX, num_frames=33, progress=False, **SMALL)
    list(distilled.stream(FOX, num_frames=33, **SMALL))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("undecoded")
def test_seconds_are_wall_time(distilled):
    """The time from the request for a chunk to its frames, including the steps."""
    stream = distilled.stream(
        FOX, num_frames=33, on_step=lambda _: time.sleep(0.05), amplify_first_chunk=False, **SMALL
    )
    start = time.perf_counter()
    chunk = next(stream)
    assert 3 * 0.05 <= chunk.seconds <= time.perf_counter() - start


@pytest.mark.usefixtures("undecoded")
def test_interrupted_chunk_is_sampled_again_as_it_was(distilled):
    """An exception in a step of a blend costs no chunk of the blend and no draw."""
    schedule = hx.PromptSchedule(prompts=[FOX, DOG], chunks_per_prompt=(1, 3), blend_chunks=3)
    expected = take(distilled.stream(schedule, num_frames=132, **SMALL), 4)
    interrupts = [(1, 0), (1, 2), (2, 1)]

    def on_step(info):
        if (info.chunk, info.level) in interrupts:
            interrupts.remove((info.chunk, info.level))
            raise KeyboardInterrupt

    found = []
    stream = distilled.stream(schedule, num_frames=132, on_step=on_step, **SMALL)
    while len(found) < 4:
        try:
            found.append(next(stream).latents)
        except KeyboardInterrupt:
            continue
    assert interrupts == []
    np.testing.assert_array_equal(np.stack(found), expected)


@pytest.mark.usefixtures("undecoded")
def test_lookahead_hands_the_next_chunk_out_first(distilled):
    """With lookahead=1 the steps of chunk 1 are dispatched when chunk 0 comes out; a prompt shows one chunk later."""
    dispatched = []
    stream = distilled.stream(
        FOX, num_frames=132, lookahead=1, on_step=lambda info: dispatched.append(info.chunk), **SMALL
    )
    first = next(stream)
    assert (first.index, max(dispatched)) == (0, 1)
    stream.set_prompt(DOG, blend_chunks=0)
    ahead = np.concatenate([first.latents[None], take(stream, 3)])
    assert next(stream, None) is None

    later = distilled.stream(FOX, num_frames=132, **SMALL)
    expected = [take(later, 2)]
    later.set_prompt(DOG, blend_chunks=0)
    np.testing.assert_array_equal(ahead, np.concatenate([*expected, take(later, 2)]))
