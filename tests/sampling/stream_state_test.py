"""Resumed videos are the undisturbed ones, bit for bit; files and models that cannot be used are refused."""

import dataclasses
import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pending_test import DOG, FOX, SMALL, facts

import helios_jax as hx
from helios_jax.sampling.stream_state import StreamState

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (64, 64, 3), np.uint8)
VIDEO = RNG.integers(0, 256, (40, 64, 64, 3), np.uint8)


def later(pipe: hx.HeliosPipeline, stream, tmp_path, **arguments):
    """The video of ``stream``, resumed from a file."""
    state = stream.state()
    state.save(tmp_path / "video.state")
    loaded = StreamState.load(tmp_path / "video.state")
    assert facts(loaded) == facts(state)
    return pipe.stream(resume=loaded, **arguments)


def taken(stream, count: int) -> list[np.ndarray]:
    return [next(stream).latents for _ in range(count)]


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(
    ("start", "lookahead", "cuts"),
    [
        ({}, 1, (2, 4)),
        pytest.param({}, 0, range(6), marks=pytest.mark.slow),
        pytest.param({}, 1, range(6), marks=pytest.mark.slow),
        pytest.param({"image": IMAGE}, 0, range(6), marks=pytest.mark.slow),
        pytest.param({"video": VIDEO}, 1, range(6), marks=pytest.mark.slow),
    ],
    ids=["few", "text", "lookahead", "image", "clip"],
)
def test_resumed_video_is_the_undisturbed_one(distilled, tmp_path, start, lookahead, cuts):
    """Before each chunk; a blend and a later change of a schedule are in progress, and a prompt was set live."""
    schedule = hx.PromptSchedule(prompts=[FOX, DOG, "a cat"], chunks_per_prompt=(1, 3, 2), blend_chunks=2)
    arguments = {"num_frames": 6 * 33, "seed": 3, **start, **SMALL, "skip_first_chunk": True}

    def stream(cut: int):
        """The stream before chunk ``cut``, with what has been taken of it."""
        found = distilled.stream(schedule, lookahead=lookahead, **arguments)
        latents = []
        for index in range(cut):
            latents += taken(found, 1)
            if index == 2:
                found.set_prompt("a bird", blend_chunks=3)
        return found, latents

    _, expected = stream(6)
    for cut in cuts:
        interrupted, latents = stream(cut)
        resumed = later(distilled, interrupted, tmp_path)
        assert (resumed.index, resumed.num_steps) == (cut, 3 * (6 - cut) + 3 * (cut == 0))
        if cut < 3:  # the live prompt is set by the resumed stream
            latents += taken(resumed, 3 - cut)
            # A stream with a lookahead had dispatched the next chunk before the prompt was set.
            latents += taken(resumed, lookahead)
            resumed.set_prompt("a bird", blend_chunks=3)
        latents += [chunk.latents for chunk in resumed]
        np.testing.assert_array_equal(latents, expected)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 2])
def test_exact_frames_and_pixels_of_a_finite_video(distilled, tmp_path, cut):
    whole = distilled(FOX, num_frames=70, exact_frames=True, progress=False, **SMALL)
    stream = distilled.stream(FOX, num_frames=70, exact_frames=True, **SMALL)
    chunks = [next(stream) for _ in range(cut)]
    resumed = later(distilled, stream, tmp_path)
    chunks += list(resumed)
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    assert [chunk.frames.shape[1] for chunk in chunks] == [33, 33, 4]
    np.testing.assert_array_equal(np.concatenate([chunk.frames for chunk in chunks], axis=1), whole.frames)


@pytest.mark.usefixtures("undecoded")
def test_finished_video_goes_on(distilled, tmp_path):
    expected = taken(distilled.stream(FOX, num_frames=132, **SMALL), 4)
    stream = distilled.stream(FOX, num_frames=66, **SMALL)
    taken(stream, 2)
    state = stream.state()
    with pytest.raises(ValueError, match="num_frames=66, but 66 frames of the video are finished: to con"):
        distilled.stream(resume=state)
    for num_frames in (132, None):
        resumed = distilled.stream(resume=state, num_frames=num_frames)
        np.testing.assert_array_equal(taken(resumed, 2), expected[2:])
        assert resumed.has_more == (num_frames is None)
    # Settings that a video may change in the middle.
    other = distilled.stream(resume=state, num_frames=None, steps=(2, 1, 1), seed=9)
    assert (next(other).latents != expected[2]).any()
    assert other.state().settings.seed == 9


@pytest.mark.slow
@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("kind", ["base", "mid"])
def test_guided_batches_keep_their_negative_prompts(pipelines, tmp_path, kind):
    pipe = pipelines(kind)
    arguments = SMALL | {"steps": 3 if kind == "base" else (3, 1, 1), "num_frames": 99}
    expected = [chunk.latents for chunk in pipe.stream([FOX, DOG], ["red", "blue"], **arguments)]
    stream = pipe.stream([FOX, DOG], ["red", "blue"], **arguments)
    taken(stream, 1)
    np.testing.assert_array_equal([chunk.latents for chunk in later(pipe, stream, tmp_path)], expected[1:])


@pytest.mark.slow
@pytest.mark.usefixtures("undecoded")
def test_bfloat16_embeddings_come_back_as_they_were(bfloat16, tmp_path):
    """Bit patterns in the middle of a blend, and the video that follows from them."""

    def blending():
        stream = bfloat16.stream(FOX, num_frames=132, **SMALL)
        latents = taken(stream, 1)
        stream.set_prompt(DOG, blend_chunks=4)
        return stream, latents + taken(stream, 2)

    stream, _ = blending()
    expected = [chunk.latents for chunk in stream]
    stream, _ = blending()
    resumed = later(bfloat16, stream, tmp_path)
    state = resumed.state()
    assert [array.dtype for array in state.timeline.arrays] == [jnp.bfloat16] * 3
    assert len(state.timeline.weights) == 2
    np.testing.assert_array_equal([chunk.latents for chunk in resumed], expected)


@pytest.mark.usefixtures("undecoded")
def test_noise_must_be_given_again(distilled, tmp_path):
    noise = hx.KeyNoise.from_seed(77)
    expected = taken(distilled.stream(FOX, num_frames=None, noise=noise, **SMALL), 2)
    stream = distilled.stream(FOX, num_frames=None, noise=noise, **SMALL)
    taken(stream, 1)
    with pytest.raises(ValueError, match="came from noise=, not from its seed: give the same noise again"):
        later(distilled, stream, tmp_path)
    np.testing.assert_array_equal(taken(later(distilled, stream, tmp_path, noise=noise), 1), expected[1:])


@pytest.mark.slow
def test_resumed_in_a_new_process(distilled, tmp_path):
    """With decoded frames; the other process loads the checkpoint and the state from disk."""
    distilled.save(tmp_path / "checkpoint")
    arguments = SMALL | {"num_frames": 99, "image": IMAGE}
    expected = list(distilled.stream(FOX, **arguments))[2]
    stream = distilled.stream(FOX, **arguments)
    taken(stream, 2)
    stream.state().save(tmp_path / "video.state")
    code = f"""
import numpy as np, helios_jax as hx
from helios_jax.sampling.stream_state import StreamState
pipe = hx.HeliosPipeline.from_pretrained({str(tmp_path / "checkpoint")!r}, dtype="float32", vae_dtype="float32")
(chunk,) = pipe.stream(resume=StreamState.load({str(tmp_path / "video.state")!r}))
np.savez({str(tmp_path / "chunk.npz")!r}, frames=chunk.frames, latents=chunk.latents)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with np.load(tmp_path / "chunk.npz") as found:
        np.testing.assert_array_equal(found["latents"], expected.latents)
        np.testing.assert_array_equal(found["frames"], expected.frames)


@pytest.fixture
def state(distilled, undecoded) -> StreamState:
    stream = distilled.stream(FOX, num_frames=99, **SMALL)
    taken(stream, 1)
    return stream.state()


@pytest.mark.slow
def test_models_that_a_state_does_not_fit(pipelines, bfloat16, state):
    with pytest.raises(ValueError, match="made with another model: Helios Distilled, 188k parameters, and this one"):
        pipelines("base").stream(resume=state)
    with pytest.raises(ValueError, match="made with dtype='float32', and the model is loaded with 'bfloat16'"):
        bfloat16.stream(resume=state)


@pytest.mark.usefixtures("unchecked")
def test_settings_that_a_state_does_not_fit(distilled, state):
    with pytest.raises(ValueError, match="height=128: the video to be resumed has height=64, which stays"):
        distilled.stream(resume=state, height=128)
    with pytest.raises(ValueError, match=r"guidance_scale=3\.0: the video to be resumed has guidance_scale=None"):
        distilled.stream(resume=state, guidance_scale=3)
    with pytest.raises(ValueError, match="prompt, image and resume are given"):
        distilled.stream(DOG, image=IMAGE, resume=state)
    with pytest.raises(ValueError, match=r"resume='a\.state' must be a StreamState"):
        distilled.stream(resume="a.state")
    for wrong in (
        dataclasses.replace(state, frames=state.frames[:, 1:]),
        dataclasses.replace(state, batch=2),
        dataclasses.replace(state, timeline=state.timeline.map(lambda arrays: [a[..., 1:] for a in arrays])),
    ):
        with pytest.raises(ValueError, match=r"the state holds .* is needed"):
            distilled.stream(resume=wrong)


@pytest.mark.usefixtures("undecoded")
def test_other_weights_are_noticed(distilled, state):
    """One parameter differs by a few millionths."""
    params = distilled.transformer.params
    changed = dataclasses.replace(
        distilled, transformer=dataclasses.replace(distilled.transformer, params=_nudged(params))
    )
    with pytest.raises(ValueError, match="made with other weights of Helios Distilled, 188k parameters: load the"):
        changed.stream(resume=state)


def _nudged(params):
    leaves, tree = jax.tree.flatten(params)
    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    leaves[largest] = leaves[largest] * jnp.float32(1 + 3e-6)
    return jax.tree.unflatten(tree, leaves)


def test_damaged_and_foreign_files(state, tmp_path):
    path = tmp_path / "video.state"
    with pytest.raises(FileNotFoundError, match=r"the state .*video\.state does not exist"):
        StreamState.load(path)
    state.save(path)
    data = path.read_bytes()
    assert sorted(tmp_path.iterdir()) == [path]
    # Any byte and any length: in the first line, the JSON object, the tensors.
    rng = np.random.default_rng(0)
    for place in [*range(0, 110, 7), *rng.integers(110, len(data), 40).tolist(), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"video\.state is (damaged|not a stream state|a stream state of version)"):
            StreamState.load(path)
        path.write_bytes(data[:place])
        with pytest.raises(ValueError, match=r"video\.state is (damaged|not a stream state)") as error:
            StreamState.load(path)
        assert "\n" not in str(error.value)
    path.write_bytes(data.replace(b"state 1", b"state 2", 1))
    with pytest.raises(ValueError, match="is a stream state of version 2; this helios_jax reads version 1"):
        StreamState.load(path)
    # The digest is right, but the content was written by something else.
    for content in (
        b"",
        b"{}\n",
        b"[1]\n" + data.split(b"\n", 2)[2],
        data.split(b"\n", 1)[1].replace(b"weights", b"w", 1),
    ):
        path.write_bytes(b"helios_jax stream state 1 %s\n%s" % (hashlib.sha256(content).hexdigest().encode(), content))
        with pytest.raises(ValueError, match=r"video\.state does not describe a stream") as error:
            StreamState.load(path)
        assert "\n" not in str(error.value)


def test_only_states_are_replaced(state, tmp_path):
    path = tmp_path / "folder" / "video.state"
    state.save(path)
    state.save(path)
    assert facts(StreamState.load(path)) == facts(state)
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="is not a stream state, so it is not replaced"):
        state.save(path)
    assert path.read_text() == "precious"
    with pytest.raises(FileExistsError, match="is not a stream state"):
        state.save(tmp_path)


def test_state_is_small(state):
    """The context of 19 + 1 latent frames and one embedding, whatever the length of the video."""
    arrays = [state.frames, state.anchor, *state.timeline.arrays]
    assert sum(array.nbytes for array in arrays) == 20 * 8 * 8 * 16 * 4 + 8 * 24 * 4
