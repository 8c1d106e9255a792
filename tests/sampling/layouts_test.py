"""Checkpoints that were trained with another context are sampled with it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helios_jax as hx
from helios_jax.checkpoints.settings import read_settings
from helios_jax.config import HistoryConfig
from helios_jax.context import History
from helios_jax.sampling.chunk import ChunkSampler, project_text
from helios_jax.sampling.conditioning import Conditioner
from helios_jax.sampling.inputs import SampleInputs
from helios_jax.sampling.noise import KeyNoise
from helios_jax.sampling.plan import plan_chunk
from helios_jax.sampling.request import RequestDefaults
from helios_jax.sampling.settings import SampleSettings
from helios_jax.sampling.stream_state import StreamState

SMALL = {"height": 64, "width": 64, "steps": (1, 1, 1), "max_text_tokens": 8, "amplify_first_chunk": False}


def with_history(pipe: hx.HeliosPipeline, **history) -> hx.HeliosPipeline:
    config = dataclasses.replace(pipe.config, history=HistoryConfig(**history))
    return hx.HeliosPipeline(
        config=config, **{name: getattr(pipe, name) for name in ("scheduler", "transformer", "vae", "text_encoder")}
    )


def table(pipe: hx.HeliosPipeline, chunk: int, current: tuple[int, int]) -> jax.Array:
    """The rotary table of a chunk in NumPy, from the numbers of frames in the video."""
    config, start = pipe.transformer.config, 9 * chunk

    def grid(frames, height, width):
        positions = np.meshgrid(frames, np.arange(height), np.arange(width), indexing="ij")
        angles = [
            position[..., None] * config.rope_theta ** (-np.arange(0, channels, 2) / channels)
            for position, channels in zip(positions, config.rope_dim, strict=True)
        ]
        return np.stack([f(np.concatenate(angles, axis=-1)) for f in (np.cos, np.sin)], axis=-2)

    def pooled(cells, size):
        t, h, w, *rest = cells.shape
        cells = cells.reshape(t // size, size, h // size, size, w // size, size, *rest)
        return cells.mean((1, 3, 5))

    grids = [
        pooled(grid(np.arange(start - 19, start - 3), 4, 4), 4),
        pooled(grid(np.arange(start - 3, start - 1), 4, 4), 2),
        grid([0, start - 1], 4, 4),
        grid(np.arange(start, start + 9), current[0] // 2, current[1] // 2),
    ]
    return jnp.asarray(np.concatenate([g.reshape(-1, *g.shape[3:]) for g in grids]), jnp.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("undecoded")
def test_a_stream_with_absolute_positions_equals_one_by_hand(distilled):
    pipe = with_history(distilled, positions="absolute")
    found = pipe("a fox", num_frames=99, progress=False, seed=3, **SMALL).latents
    layout, noise = HistoryConfig(), KeyNoise.from_seed(3)
    sampler = ChunkSampler(
        transformer=pipe.transformer, scheduler=pipe.scheduler, guidance=None, scale=1.0, history_config=layout
    )
    plans = plan_chunk(
        pipe.scheduler, pipe.transformer.config, steps=(1, 1, 1), frames=9, size=(8, 8), integer_timesteps=True
    )
    text = project_text(pipe.transformer, pipe.text_encoder(["a fox"], 8))
    history, chunks = History.empty(layout, 1, 8, 8, 16), []
    for chunk in range(3):
        latents, _ = sampler.sample(
            chunk,
            plans,
            text=text,
            ropes=tuple(table(pipe, chunk, plan.size) for plan in plans),
            history=history,
            noise=noise,
            on_step=lambda _: None,
        )
        history = history.push(latents)
        history = history.with_anchor(latents[:, :1]) if chunk == 0 else history
        chunks.append(np.asarray(latents, np.float32))
    np.testing.assert_allclose(found, np.concatenate(chunks, axis=1), atol=1e-4)
    relative = distilled("a fox", num_frames=99, progress=False, seed=3, **SMALL).latents
    # The first chunk has no anchor yet, only a zero in its place.
    assert np.abs(found - relative)[:, 18:].max() > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("undecoded")
def test_a_resumed_video_counts_the_chunks_of_its_clip(distilled, tmp_path):
    """Absolute positions go on after the clip that the video continues, of which a state holds only the length."""
    pipe = with_history(distilled, positions="absolute")
    clip = np.random.default_rng(0).integers(0, 256, (66, 64, 64, 3), np.uint8)
    stream = pipe.stream("a fox", video=clip, num_frames=None, seed=3, **SMALL)
    next(stream)
    state = stream.state()
    state.save(tmp_path / "fox.state")
    loaded = StreamState.load(tmp_path / "fox.state")
    assert loaded.past_chunks == 2
    undisturbed = next(stream).latents
    np.testing.assert_array_equal(next(pipe.stream(resume=loaded)).latents, undisturbed)
    uncounted = dataclasses.replace(loaded, past_chunks=0)
    assert np.abs(next(pipe.stream(resume=uncounted)).latents - undisturbed).max() > 1e-3


@pytest.mark.usefixtures("undecoded")
def test_a_model_without_an_anchor_needs_no_flag(distilled):
    """It is sampled as others are with ``keep_first_frame=False``, and its file says so."""
    pipe = with_history(distilled, keep_first_frame=False)
    arguments = {"num_frames": 66, "progress": False, **SMALL}
    free = distilled("a fox", keep_first_frame=False, **arguments).latents
    np.testing.assert_array_equal(pipe("a fox", **arguments).latents, free)


@pytest.mark.slow
def test_the_context_is_saved_with_a_checkpoint(distilled, tmp_path):
    layout = {"sizes": (0, 2, 1), "positions": "absolute"}
    with_history(distilled, **layout).save(tmp_path / "other")
    distilled.save(tmp_path / "published")
    assert '"history"' not in (tmp_path / "published" / "model_index.json").read_text()
    settings = read_settings(tmp_path / "other")
    assert settings.config.history == HistoryConfig(**layout)
    request = RequestDefaults.of(settings).resolve(SampleInputs(prompt=""), SampleSettings(height=64, width=64))
    assert request.history_config == HistoryConfig(**layout)
    video = hx.HeliosPipeline.from_pretrained(tmp_path / "other", dtype="float32", vae_dtype="float32")
    chunks = list(itertools.islice(video.stream("a fox", num_frames=None, **SMALL), 2))
    assert all(np.isfinite(chunk.latents).all() for chunk in chunks)


@pytest.mark.slow
def test_every_video_can_have_its_own_clip(distilled):
    """Together they get the contexts that each gets alone, from its own draws."""
    clips = np.random.default_rng(0).integers(0, 256, (2, 33, 64, 64, 3), np.uint8)

    class Part:
        """The draws of one video of the batch of two."""

        def __init__(self, number: int | None) -> None:
            self.number, self.source = number, KeyNoise.from_seed(1)

        def normal(self, name, shape):
            both = self.source.normal(name, (2, *shape[1:]))
            return both if self.number is None else both[self.number : self.number + 1]

        def uniform(self, name, shape):
            return self.source.uniform(name, shape)

    def conditioner(number: int | None) -> Conditioner:
        sigmas = {"image_sigmas": (0.1, 0.2), "video_sigmas": (0.1, 0.2)}
        batch = 2 if number is None else 1
        return Conditioner(vae=distilled.vae, history_config=HistoryConfig(), noise=Part(number), batch=batch, **sigmas)

    both = conditioner(None).from_video(*clips)
    for number in range(2):
        alone = conditioner(number).from_video(clips[number])
        np.testing.assert_allclose(both.frames[number], alone.frames[0], atol=1e-4)
        np.testing.assert_allclose(both.anchor[number], alone.anchor[0], atol=1e-4)
    with pytest.raises(ValueError, match="video holds 2 clips for 3 prompts"):
        distilled.stream(["a", "b", "c"], video=clips, **SMALL)
