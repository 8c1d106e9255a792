"""Batches of recorded trajectories: chunks of videos as samples, their past, and restarts."""

import collections
import dataclasses
import itertools
import json

import ml_dtypes
import numpy as np
import pytest

from helios_jax.data.helios_latents.record import RecordError
from helios_jax.data.helios_ode.record import LevelPoints, OdeRecord
from helios_jax.training.ode_loader import draw_chunks, ode_loader
from helios_jax.training.text_formats import PaddedEmbeds

TEXT = PaddedEmbeds(tokens=3)


def levels(number: int, chunks: range, count: int) -> tuple[LevelPoints, ...]:
    """Point p of chunk c of a video is 1000 number + 100 c + 10 p + level everywhere; its frames add 1/16 each."""
    found = []
    for level in range(3):
        c, p, t = np.meshgrid(chunks, range(count + 1), range(9), indexing="ij")
        values = 1000 * number + 100 * c + 10 * p + level + t / 16
        found.append(
            LevelPoints(
                latents=np.broadcast_to(
                    values[..., None, None, None].astype(np.float32), (*values.shape, 1 << level, 1 << level, 1)
                ),
                timesteps=np.arange(count, 0, -1, dtype=np.float32) + 10 * level,
                sigmas=np.linspace(0.9, 0.1, count, dtype=np.float32),
            )
        )
    return tuple(found)


def record(number: int, chunks: int = 5, first: int = 4, later: int = 2) -> OdeRecord:
    return OdeRecord(
        uid=f"prompt{number}",
        caption=f"Number {number}.",
        embeds=np.full((2, 3), number + 1, ml_dtypes.bfloat16),
        first=levels(number, range(1), first),
        later=levels(number, range(1, chunks), later),
    )


def loader(records, batch: int, seed: int = 0, **options):
    return ode_loader([records], batch=batch, seed=seed, text=TEXT, **options)


def take(batches, count: int) -> list:
    return list(itertools.islice(batches, count))


def seen(batch) -> list[tuple[int, int]]:
    """(video, chunk) of every sample."""
    values = np.asarray(batch.levels[0].end[:, 0, 0, 0, 0], int)
    return [(int(value) // 1000, int(value) % 1000 // 100) for value in values]


def test_samples_are_different_chunks_of_each_video():
    for batch in take(loader([record(number) for number in range(4)], batch=12), 5):
        found = seen(batch)
        assert sorted({video for video, _ in found}) == [0, 1, 2, 3]
        for first in range(0, 12, 3):
            assert len({video for video, _ in found[first : first + 3]}) == 1
            assert len({chunk for _, chunk in found[first : first + 3]}) == 3


def test_a_sample_holds_its_points_and_its_past():
    (batch,) = take(loader([record(number) for number in range(3)], batch=9), 1)
    for row, (video, chunk) in enumerate(seen(batch)):
        one = record(video)
        for level, points in enumerate(batch.levels):
            stored, place = one.points(chunk)
            times = 1 if chunk == 0 else 2
            wanted = np.concatenate([stored[level].latents[place, :-1]] * times)
            np.testing.assert_array_equal(points.latents[row], wanted)
            np.testing.assert_array_equal(points.end[row], stored[level].latents[place, -1])
            np.testing.assert_array_equal(points.timesteps[row], np.tile(stored[level].timesteps, times))
            np.testing.assert_array_equal(points.sigmas[row], np.tile(stored[level].sigmas, times))
            assert points.latents.shape[1:3] == (4, 9)
        ends = [1000 * video + 100 * c + 10 * (4 if c == 0 else 2) + 2 + t / 16 for c in range(chunk) for t in range(9)]
        np.testing.assert_array_equal(batch.history[row, :, 0, 0, 0], np.float32([*[0] * 19, *ends][-19:]))
        assert batch.anchor[row, 0, 0, 0, 0] == (ends[0] if chunk else 0)
        assert batch.text.embeds[row, :, 0].tolist() == [video + 1, video + 1, 0]


def test_all_choices_of_chunks_are_equally_likely():
    draws = (np.arange(6000) + 0.5) / 6000
    found = [draw_chunks(draw, 5, 3) for draw in draws]
    counts = collections.Counter(tuple(chunks) for chunks, _ in found)
    assert len(counts) == 10
    assert set(counts.values()) == {600}
    for chunks in counts:
        rests = [rest for own, rest in found if tuple(own) == chunks]
        assert np.mean(rests) == pytest.approx(0.5, abs=0.01)
    assert draw_chunks(0.3, 2, 2)[0] == [0, 1]


def assert_equal(a, b) -> None:
    np.testing.assert_array_equal(a.history, b.history)
    for one, other in zip(a.levels, b.levels, strict=True):
        np.testing.assert_array_equal(one.latents, other.latents)


def test_batches_do_not_depend_on_processes_and_resume():
    records = [record(number) for number in range(5)]
    whole = loader(records, batch=12, seed=3)
    take(whole, 4)
    state = json.loads(json.dumps(whole.get_state()))
    expected = take(whole, 4)
    fresh = loader(records, batch=12, seed=3)
    fresh.set_state(state)
    for a, b in zip(take(fresh, 4), expected, strict=True):
        assert_equal(a, b)
    halves = [loader(records, batch=12, seed=3, process_index=index, process_count=2) for index in range(2)]
    for half in halves:
        half.set_state(state)
    for parts, batch in zip(zip(*(take(half, 4) for half in halves), strict=True), expected, strict=True):
        np.testing.assert_array_equal(np.concatenate([part.history for part in parts]), batch.history)
        assert [pair for part in parts for pair in seen(part)] == seen(batch)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record(1, chunks=2), r"record \d of 2 in memory \('prompt1'\) cannot be used: it has 2 chunks; 3 are drawn"),
        (record(1, first=3), "first chunk has 3 points, which is no multiple of the 2 of others"),
        (dataclasses.replace(record(1), embeds=np.zeros((0, 3))), "no text embeddings"),
    ],
)
def test_records_that_cannot_be_used_are_named_or_skipped(bad, message):
    with pytest.raises(RecordError, match=message):
        take(loader([record(0), bad], batch=6), 2)
    (batch,) = take(loader([record(0), bad], batch=6, on_error="skip"), 1)
    assert {video for video, _ in seen(batch)} == {0}


def test_arguments_and_records_that_do_not_go_together():
    with pytest.raises(ValueError, match="a batch of 4 samples must be a multiple of chunks=3"):
        loader([record(0)], batch=4)
    with pytest.raises(ValueError, match="batch of 1 cannot be divided evenly among 2 processes"):
        loader([record(0)], batch=3, process_index=0, process_count=2)
    with pytest.raises(ValueError, match="recorded with different steps"):
        take(loader([record(0), record(1, first=2)], batch=6), 1)
