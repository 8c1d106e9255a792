"""Prompt schedules and live prompt changes."""

import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.sampling.prompts import EmbeddingTimeline, PromptSchedule, blend_weights


def embeds(value: float, dtype: str = "float32"):
    return jnp.full((1, 4, 2), value, dtype)


def shown(timeline: EmbeddingTimeline, chunks: int) -> list[float]:
    return [float(timeline.next()[0, 0, 0]) for _ in range(chunks)]


def test_published_schedule():
    """Three prompts of seven chunks, three chunks of blending: the interactive mode of the Helios research code."""
    schedule = PromptSchedule(prompts=["a", "b", "c"])
    assert schedule.num_chunks == 21
    assert schedule.starts == (0, 7, 14)
    first = [schedule.at(chunk) for chunk in range(7)]
    assert first == [((0, 1.0),)] * 7
    assert [schedule.at(chunk) for chunk in range(7, 11)] == [
        ((0, 1.0),),
        ((0, 0.5), (1, 0.5)),
        ((1, 1.0),),
        ((1, 1.0),),
    ]
    assert schedule.at(15) == ((1, 0.5), (2, 0.5))
    assert schedule.at(20) == ((2, 1.0),)


def test_past_the_end_the_last_prompt_stays():
    schedule = PromptSchedule(prompts=["a", "b"], chunks_per_prompt=(2, 3), blend_chunks=0)
    assert schedule.num_chunks == 5
    assert [schedule.at(chunk) for chunk in (1, 2, 5, 1000)] == [((0, 1.0),), *[((1, 1.0),)] * 3]


@pytest.mark.parametrize("blend_chunks", [0, 1, 2, 3, 5])
def test_timeline_shows_what_the_schedule_says(blend_chunks):
    schedule = PromptSchedule(prompts=("a", "b", "c"), chunks_per_prompt=(2, 5, 6), blend_chunks=blend_chunks)
    values = [1.0, 10.0, -4.0]
    timeline = schedule.timeline([embeds(value) for value in values])
    wanted = [sum(weight * values[i] for i, weight in schedule.at(chunk)) for chunk in range(16)]
    np.testing.assert_allclose(shown(timeline, 16), wanted, rtol=1e-6)


def test_blend_is_linspace():
    assert blend_weights(3) == (0.0, 0.5, 1.0)
    assert blend_weights(5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert blend_weights(0) == blend_weights(1) == ()


def test_live_blend_begins_with_the_new_prompt():
    assert [blend_weights(n, live=True) for n in (0, 1, 2, 3)] == [(), (), (1.0,), (0.5, 1.0)]
    assert blend_weights(5, live=True) == (0.25, 0.5, 0.75, 1.0)
    timeline = EmbeddingTimeline(embeds(0.0))
    timeline.next()
    timeline.set(embeds(8.0), 3, live=True)
    assert shown(timeline, 3) == [4.0, 8.0, 8.0]


def test_timeline_goes_back_and_keeps_later_changes():
    timeline = EmbeddingTimeline(embeds(0.0))
    timeline.set(embeds(8.0), 3, at=1)
    timeline.next()
    before = timeline.state()
    timeline.next()
    timeline.set(embeds(2.0), at=2)
    timeline.go_back(before)
    assert (timeline.state().chunk, sorted(timeline.state().changes)) == (1, [1, 2])
    assert shown(timeline, 3) == [0.0, 2.0, 2.0]
    resumed = EmbeddingTimeline.resumed(before)
    assert shown(resumed, 3) == [0.0, 4.0, 8.0]


def test_live_change_blends_over_the_next_chunks():
    timeline = EmbeddingTimeline(embeds(0.0))
    assert shown(timeline, 2) == [0.0, 0.0]
    timeline.set(embeds(8.0), 3)
    assert shown(timeline, 5) == [0.0, 4.0, 8.0, 8.0, 8.0]
    timeline.set(embeds(1.0), 1)
    assert shown(timeline, 2) == [1.0, 1.0]


def test_change_within_a_blend_continues_from_what_was_shown():
    timeline = EmbeddingTimeline(embeds(0.0))
    timeline.set(embeds(8.0), 3)
    assert shown(timeline, 2) == [0.0, 4.0]
    timeline.set(embeds(20.0), 3)
    assert shown(timeline, 4) == [4.0, 12.0, 20.0, 20.0]


def test_live_change_within_a_schedule_keeps_the_later_prompts():
    timeline = PromptSchedule(prompts=["a", "b"], chunks_per_prompt=3, blend_chunks=0).timeline(
        [embeds(1.0), embeds(2.0)]
    )
    timeline.next()
    timeline.set(embeds(7.0))
    assert shown(timeline, 3) == [7.0, 7.0, 2.0]


def test_same_object_while_nothing_changes():
    old, new = embeds(0.0), embeds(1.0)
    timeline = EmbeddingTimeline(old)
    assert timeline.next() is old
    timeline.set(new, 3)
    assert timeline.next() is old
    assert timeline.next() is not old
    assert all(timeline.next() is new for _ in range(3))


def test_interpolation_keeps_the_dtype_and_rounds_once():
    timeline = EmbeddingTimeline(embeds(1.0, "bfloat16"))
    timeline.set(embeds(1.0078125, "bfloat16"), 4)
    third = [timeline.next() for _ in range(2)][1]
    assert third.dtype == jnp.bfloat16
    # 1 + 1/3 * 2^-7 lies closer to 1 than to its bfloat16 neighbour.
    assert third[0, 0, 0] == 1.0


def test_timeline_refuses_what_cannot_be_blended():
    timeline = EmbeddingTimeline(embeds(0.0))
    for other in (jnp.zeros((1, 5, 2)), embeds(0.0, "bfloat16")):
        with pytest.raises(ValueError, match=r"float32\[1, 4, 2\].*same batch, max_tokens"):
            timeline.set(other)
    with pytest.raises(ValueError, match="blend_chunks=-1"):
        timeline.set(embeds(1.0), -1)
    timeline.next()
    with pytest.raises(ValueError, match="chunk 0: the next chunk is 1"):
        timeline.set(embeds(1.0), at=0)
    with pytest.raises(ValueError, match="1 embeddings for 2 prompts"):
        PromptSchedule(prompts=["a", "b"]).timeline([embeds(0.0)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": []}, "at least one text"),
        ({"prompts": "abc"}, "at least one text"),
        ({"prompts": ["a", "b"], "chunks_per_prompt": (7,)}, "1 intervals for 2 prompts"),
        ({"prompts": ["a", "b"], "chunks_per_prompt": (3, 0), "blend_chunks": 0}, "at least one chunk"),
        ({"prompts": ["a", "b", "c"], "chunks_per_prompt": (1, 4, 2)}, "between 0 and 2, the shortest"),
        ({"prompts": ["a", "b"], "blend_chunks": -1}, "blend_chunks=-1"),
        ({"prompts": ["a"], "blend_chunks": -1}, "blend_chunks=-1"),
    ],
)
def test_impossible_schedules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PromptSchedule(**fields)


def test_first_interval_may_be_shorter_than_the_blend():
    schedule = PromptSchedule(prompts=["a", "b"], chunks_per_prompt=[1, 3])
    assert schedule.at(2) == ((0, 0.5), (1, 0.5))
    assert PromptSchedule(prompts=["a"], chunks_per_prompt=1).at(5) == ((0, 1.0),)
    with pytest.raises(ValueError, match="chunk=-1"):
        schedule.at(-1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": 5}, "prompts=5 must be a sequence"),
        ({"prompts": None}, "prompts=None must be a sequence"),
        ({"prompts": ["a", 5]}, r"prompts=\['a', 5\] must hold texts only"),
        ({"blend_chunks": 2.5}, r"blend_chunks=2\.5 must be a whole number"),
        ({"blend_chunks": 10**12, "chunks_per_prompt": 10**12}, "blend_chunks=1000000000000 must be a whole number"),
        ({"blend_chunks": "2"}, "blend_chunks='2' must be a whole number"),
        ({"chunks_per_prompt": 2.5}, r"chunks_per_prompt=2\.5 must be a whole number"),
        ({"chunks_per_prompt": (3, 2.5)}, r"chunks_per_prompt=2\.5 must be a whole number"),
        ({"chunks_per_prompt": "77"}, "chunks_per_prompt='77' must be a whole number"),
    ],
)
def test_wrong_types_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PromptSchedule(**{"prompts": ["a", "b"], **fields})


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_accepted():
    schedule = PromptSchedule(prompts=["a", "b"], chunks_per_prompt=np.array([2, 3]), blend_chunks=np.int64(1))
    assert schedule == PromptSchedule(prompts=("a", "b"), chunks_per_prompt=(2, 3), blend_chunks=1)
