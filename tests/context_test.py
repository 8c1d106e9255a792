"""The history buffer against plain numpy, and the published frame indices."""

import dataclasses

import jax
import numpy as np
import pytest

from helios_jax.config import HistoryConfig
from helios_jax.context import History

ANCHORED, FREE = HistoryConfig(), HistoryConfig(keep_first_frame=False)


def frames(count: int, start: int = 0) -> np.ndarray:
    """Distinct latent frames, [1, T, 2, 3, 4]."""
    return np.arange(start, start + count * 24, dtype=np.float32).reshape(1, count, 2, 3, 4)


def filled(config: HistoryConfig) -> History:
    return History(frames=jax.numpy.asarray(frames(config.buffer_frames)), anchor=jax.numpy.full((1, 1, 2, 3, 4), -1.0))


def test_published_frame_indices():
    long, mid, short, current = ANCHORED.frame_indices
    assert long == tuple(range(1, 17))
    assert mid == (17, 18)
    assert short == (0, 19)
    assert current == tuple(range(20, 29))
    assert (ANCHORED.buffer_frames, ANCHORED.tier_sizes) == (19, (16, 2, 1))


def test_frame_indices_without_the_first_frame():
    long, mid, short, current = FREE.frame_indices
    assert long + mid + short + current == tuple(range(29))
    assert (len(long), len(mid), len(short), len(current)) == (16, 2, 2, 9)
    assert (FREE.buffer_frames, FREE.tier_sizes) == (20, (16, 2, 2))


@pytest.mark.parametrize("config", [ANCHORED, FREE])
def test_empty_history_is_zero(config):
    history = History.empty(config, 3, 2, 5, 4)
    assert history.frames.shape == (3, config.buffer_frames, 2, 5, 4)
    assert history.anchor.shape == (3, 1, 2, 5, 4)
    assert not history.frames.any()
    assert not history.anchor.any()


@pytest.mark.parametrize("count", [1, 9, 19, 25])
def test_push_keeps_the_latest_frames(count):
    history, new = filled(ANCHORED), frames(count, start=10_000)
    expected = np.concatenate([history.frames, new], axis=1)[:, -19:]
    pushed = history.push(jax.numpy.asarray(new))
    np.testing.assert_array_equal(pushed.frames, expected)
    np.testing.assert_array_equal(pushed.anchor, history.anchor)


@pytest.mark.parametrize("count", [1, 9, 19, 25])
def test_replace_tail_overwrites_the_latest_frames(count):
    history, new = filled(ANCHORED), frames(count, start=10_000)
    expected = np.array(history.frames)
    expected[:, -min(count, 19) :] = new[:, -19:]
    np.testing.assert_array_equal(history.replace_tail(jax.numpy.asarray(new)).frames, expected)


def test_rounded_latents_are_kept_in_fp32():
    latents = jax.numpy.ones((1, 1, 2, 3, 4), "bfloat16")
    history = filled(ANCHORED)
    for changed in (history.push(latents), history.replace_tail(latents), history.with_anchor(latents)):
        assert (changed.frames.dtype, changed.anchor.dtype) == ("float32", "float32")


def test_tiers_with_the_first_frame():
    tiers, buffer = filled(ANCHORED).tiers(ANCHORED), frames(19)
    np.testing.assert_array_equal(tiers.long, buffer[:, :16])
    np.testing.assert_array_equal(tiers.mid, buffer[:, 16:18])
    np.testing.assert_array_equal(tiers.short, np.concatenate([np.full((1, 1, 2, 3, 4), -1.0), buffer[:, 18:]], axis=1))


def test_tiers_without_the_first_frame_ignore_it():
    history, buffer = filled(FREE), frames(20)
    for anchor in (history.anchor, history.anchor * 7):
        tiers = dataclasses.replace(history, anchor=anchor).tiers(FREE)
        joined = np.concatenate([tiers.long, tiers.mid, tiers.short], axis=1)
        np.testing.assert_array_equal(joined, buffer)
        assert (tiers.long.shape[1], tiers.mid.shape[1], tiers.short.shape[1]) == (16, 2, 2)


@pytest.mark.parametrize("config", [ANCHORED, FREE])
def test_tiers_have_as_many_frames_as_indices(config):
    tiers = filled(config).tiers(config)
    assert [t.shape[1] for t in (tiers.long, tiers.mid, tiers.short)] == list(map(len, config.frame_indices[:3]))
