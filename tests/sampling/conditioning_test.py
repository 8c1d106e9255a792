"""The context that a video starts from, and the effect of the anchor on later chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helios_jax as hx
from helios_jax.config import HistoryConfig
from helios_jax.context import History
from helios_jax.media.pixels import to_signed
from helios_jax.media.reading import load_ends
from helios_jax.models.vae import normalize
from helios_jax.sampling import chunk as chunk_module
from helios_jax.sampling.chunk import embed_history
from helios_jax.sampling.conditioning import Conditioner
from helios_jax.sampling.request import visible_chunks

SMALL = {"height": 64, "width": 64, "steps": (1, 1, 1), "max_text_tokens": 8}
SIGMAS = (0.111, 0.135)


class Listed:
    """A noise source that lists the draws requested from it and may change the draws of one name."""

    def __init__(self, changed: str | None = None) -> None:
        self.source = hx.KeyNoise(key=jax.random.key(1))
        self.changed = changed
        self.asked: dict[str, tuple[int, ...]] = {}

    def normal(self, name, shape):
        self.asked[name] = tuple(shape)
        return np.asarray(self.source.normal(name, shape)) + (name == self.changed)

    def uniform(self, name, shape):
        self.asked[name] = tuple(shape)
        return np.asarray(self.source.uniform(name, shape))


def picture(frames: int | None = None) -> np.ndarray:
    """A smooth image, or a clip of such images, uint8."""
    t, y, x = np.meshgrid(np.arange(frames or 1), np.arange(64), np.arange(64), indexing="ij")
    waves = [np.sin(0.2 * t + 0.05 * (c + 1) * x) * np.cos(0.07 * y) for c in range(3)]
    pixels = np.round(127 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)
    return pixels if frames else pixels[0]


def conditioner(pipe: hx.HeliosPipeline, noise, batch: int = 1, **history) -> Conditioner:
    return Conditioner(
        vae=pipe.vae,
        history_config=HistoryConfig(**history),
        noise=noise,
        batch=batch,
        image_sigmas=SIGMAS,
        video_sigmas=(0.2, 0.4),
    )


@jax.jit
def encode(vae, video):
    return vae.module.encode(video)


def posterior(pipe: hx.HeliosPipeline, frames: np.ndarray, noise, name: str) -> np.ndarray:
    """mean + std noise, normalised; from the VAE's own encoder."""
    mean, logvar = encode(pipe.vae, to_signed(frames)[None])
    draw = noise.normal(f"{name}/posterior", mean.shape)
    return np.asarray(normalize(pipe.vae.module.config, mean + jnp.exp(logvar / 2) * draw))


def mixed(latents: np.ndarray, noise, name: str, low: float, high: float, count: int | None = None) -> np.ndarray:
    """sigma noise + (1 - sigma) latents with sigma uniform in [low, high)."""
    sigma = low + (high - low) * np.asarray(noise.uniform(f"{name}/sigma", () if count is None else (count,)))
    sigma = sigma.reshape(-1, 1, 1, 1)
    return sigma * noise.normal(f"{name}/noise", latents.shape) + (1 - sigma) * latents


def test_image_is_the_anchor_and_the_last_frame(distilled):
    noise = Listed()
    history = conditioner(distilled, noise).from_image(to_signed(picture()))
    assert noise.asked == {
        "anchor/posterior": (1, 1, 8, 8, 16),
        "anchor/sigma": (),
        "anchor/noise": (1, 1, 8, 8, 16),
        "still/posterior": (1, 9, 8, 8, 16),
        "still/sigma": (),
        "still/noise": (1, 1, 8, 8, 16),
    }
    anchor = mixed(posterior(distilled, picture()[None], noise, "anchor"), noise, "anchor", *SIGMAS)
    still = posterior(distilled, np.stack([picture()] * 33), noise, "still")[:, -1:]
    np.testing.assert_allclose(history.anchor, anchor, atol=1e-4)
    np.testing.assert_allclose(history.frames[:, -1:], mixed(still, noise, "still", 0.2, 0.4), atol=1e-4)
    assert not history.frames[:, :-1].any()


def test_clip_fills_the_context_with_its_last_pieces(distilled):
    """140 frames: 8 are dropped in front, four pieces remain, of which the first is beyond the buffer of 19."""
    clip, noise = picture(140), Listed()
    history = conditioner(distilled, noise).from_video(clip)
    names = [f"piece{i}/{draw}" for i in (1, 2, 3) for draw in ("posterior", "sigma", "noise")]
    assert list(noise.asked) == ["anchor/posterior", "anchor/sigma", "anchor/noise", *names]
    assert noise.asked["piece1/sigma"] == (9,)
    pieces = [
        mixed(posterior(distilled, clip[8 + 33 * i : 41 + 33 * i], noise, f"piece{i}"), noise, f"piece{i}", 0.2, 0.4, 9)
        for i in (1, 2, 3)
    ]
    np.testing.assert_allclose(history.frames, np.concatenate(pieces, axis=1)[:, -19:], atol=1e-4)
    anchor = mixed(posterior(distilled, clip[:1], noise, "anchor"), noise, "anchor", *SIGMAS)
    np.testing.assert_allclose(history.anchor, anchor, atol=1e-4)


def test_the_ends_of_a_clip_are_all_that_is_used(distilled):
    """140 frames of which the first and the last 99 were read: the same draws, and the same context to the bit."""
    noises = Listed(), Listed()
    clips = picture(140), load_ends(picture(140), 64, 64, last=visible_chunks(HistoryConfig()) * 33)
    assert len(clips[1].last) == 99
    whole, ends = (conditioner(distilled, noise).from_video(clip) for noise, clip in zip(noises, clips, strict=True))
    assert noises[0].asked == noises[1].asked
    np.testing.assert_array_equal(whole.frames, ends.frames)
    np.testing.assert_array_equal(whole.anchor, ends.anchor)


def test_float_clip_equals_bytes(distilled):
    clip = picture(33)
    histories = [
        conditioner(distilled, Listed()).from_video(frames) for frames in (clip, clip.astype(np.float32) / 255)
    ]
    np.testing.assert_allclose(histories[0].frames, histories[1].frames, atol=1e-5)


def test_clip_shorter_than_a_piece_is_refused(distilled):
    with pytest.raises(ValueError, match="the clip has 32 frames; at least 33 are needed"):
        conditioner(distilled, Listed()).from_video(picture(32))


@pytest.mark.slow
def test_every_video_of_a_batch_draws_its_own_noise(distilled):
    noise = Listed()
    pair = conditioner(distilled, noise, batch=2).from_image(to_signed(picture()))
    alone = conditioner(distilled, Listed()).from_image(to_signed(picture()))
    assert noise.asked["still/posterior"] == (2, 9, 8, 8, 16)
    np.testing.assert_allclose(pair.anchor[:1], alone.anchor, atol=1e-4)
    np.testing.assert_allclose(pair.frames[:1], alone.frames, atol=1e-4)
    assert jnp.abs(pair.anchor[1] - pair.anchor[0]).mean() > 0.01


@pytest.mark.slow
def test_encoding_in_slices_changes_nothing(distilled):
    whole, sliced = (
        next(distilled.stream("a fox", image=picture(), num_frames=33, vae_slice_frames=n, **SMALL)) for n in (None, 4)
    )
    np.testing.assert_allclose(whole.latents, sliced.latents, atol=1e-4)
    assert np.abs(whole.frames.astype(int) - sliced.frames).max() <= 1


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(("keep", "expected"), [(True, [True, True]), (False, [False, False])])
def test_anchor_matters_only_when_it_is_kept(distilled, keep, expected):
    """Another anchor, everything else equal: I2V changes with ``keep_first_frame`` and not a bit without."""
    arguments = {"image": picture(), "num_frames": 66, "keep_first_frame": keep, "progress": False, **SMALL}
    videos = [distilled("a fox", noise=Listed(name), **arguments).latents for name in (None, "anchor/noise")]
    changed = [bool((a != b).any()) for a, b in zip(*(np.split(video, 2, axis=1) for video in videos), strict=True)]
    assert changed == expected


@pytest.mark.usefixtures("undecoded")
def test_without_the_first_frame_the_video_is_another(distilled):
    arguments = {"num_frames": 99, "progress": False, **SMALL}
    kept, free = (distilled("a fox", keep_first_frame=keep, **arguments).latents for keep in (True, False))
    assert np.abs(kept - free)[:, 9:].mean() > 1e-3


def test_context_tokens_without_the_first_frame(distilled):
    """20 frames at patches 4, 2 and 1: 4 x 1 x 1, 1 x 2 x 2 and 2 x 4 x 4 tokens, blind to the anchor."""
    config = HistoryConfig(keep_first_frame=False)
    frames = jax.random.normal(jax.random.key(0), (1, 20, 8, 8, 16))
    anchors = jnp.zeros((1, 1, 8, 8, 16)), jnp.ones((1, 1, 8, 8, 16))
    first, second = (embed_history(distilled.transformer, History(frames=frames, anchor=a), config) for a in anchors)
    assert first.tokens.shape == (1, 4 + 4 + 32, 32)
    np.testing.assert_array_equal(first.tokens, second.tokens)


@pytest.fixture
def histories(monkeypatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """(frames, anchor) that each chunk of the test was given."""
    given = []
    original = chunk_module.embed_history

    def record(transformer, history, config):
        given.append((np.array(history.frames), np.array(history.anchor)))
        return original(transformer, history, config)

    monkeypatch.setattr(chunk_module, "embed_history", record)
    return given


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("skip", [False, True])
def test_text_to_video_anchors_on_what_it_made(distilled, histories, skip):
    out = distilled("a fox", num_frames=132, skip_first_chunk=skip, progress=False, **SMALL)
    past = np.concatenate([np.zeros((1, 19, 8, 8, 16), np.float32), out.latents], axis=1)
    zero, first, second = np.zeros((1, 1, 8, 8, 16)), out.latents[:, :1], out.latents[:, 9:10]
    later = second if skip else first
    for chunk, expected in enumerate([zero, first, later, later]):
        frames, anchor = histories[chunk]
        np.testing.assert_array_equal(frames, past[:, 9 * chunk : 9 * chunk + 19])
        np.testing.assert_array_equal(anchor, expected)


@pytest.mark.usefixtures("undecoded")
def test_image_stays_the_anchor(distilled, histories):
    distilled("a fox", image=picture(), num_frames=99, progress=False, **SMALL)
    anchors = [anchor for _, anchor in histories]
    assert np.abs(anchors[0]).max() > 0
    np.testing.assert_array_equal(anchors, [anchors[0]] * 3)
