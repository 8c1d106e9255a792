"""Captions state every attribute, and the parser understands them."""

import re

import pytest

from helios_jax.data.moving_shapes.captions import caption, parse_caption, vocabulary
from helios_jax.data.moving_shapes.styles import sample_scene
from helios_jax.data.moving_shapes.world import NUM_PHRASINGS, Description, Scene, Shape


def test_captions_are_read_back_exactly():
    phrasings = set()
    for index in range(400):
        scene = sample_scene(11, index)
        assert parse_caption(caption(scene)) == scene.description, caption(scene)
        phrasings.add(scene.phrasing)
    assert phrasings == set(range(NUM_PHRASINGS))


def test_phrasings_differ():
    description = Description(
        shapes=(Shape(kind="circle", colour="red", size="small", speed="fast", direction="upper left"),),
        background="grey to cream",
        lighting="left",
    )
    captions = {caption(Scene(description=description, starts=((0, 0),), phrasing=n)) for n in range(NUM_PHRASINGS)}
    assert len(captions) == NUM_PHRASINGS
    assert all(parse_caption(text) == description for text in captions)


def test_the_vocabulary_is_that_of_captions():
    words = vocabulary()
    assert words == sorted(set(words))
    seen = {word for i in range(600) for word in re.findall(r"\w+|[^\w\s]", caption(sample_scene(12, i)).lower())}
    assert seen == set(words)


def test_a_caption_in_full():
    description = Description(
        shapes=(
            Shape(kind="star", colour="orange", size="small", speed="medium", direction="up"),
            Shape(kind="square", colour="blue", size="large", speed="slow", direction="lower right"),
        ),
        background="pale pink",
        lighting="above",
    )
    scene = Scene(description=description, starts=((0, 0), (0, 0)), phrasing=0)
    assert caption(scene) == (
        "A small orange star moves steadily upwards, and a large blue square drifts diagonally down and to the right "
        "at a slow pace. They bounce off the borders, and those named first pass in front. The background is plain "
        "pale pink. The light comes from above."
    )


@pytest.mark.parametrize(
    "text",
    [
        "A big orange ball moves fast up and left, bouncing off the right wall, on a cream background, dimly lit",
        "On a plain cream background, in dim light: a large orange disc that rapidly heads for the upper left.",
        "Dim lighting. The background is cream.\nAn orange circle of large size goes left and upwards quickly.",
    ],
)
def test_prompts_written_by_hand(text):
    assert parse_caption(text) == Description(
        shapes=(Shape(kind="circle", colour="orange", size="large", speed="fast", direction="upper left"),),
        background="cream",
        lighting="dim",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A small red circle moves slowly left on a grey background", "need the light stated once.*found none"),
        ("A small red circle moves slowly left in dim light", "need the background stated once.*found none"),
        ("A grey background in dim light", "no shape found"),
        ("A small circle moves slowly left on a grey background in dim light", "need one colour .* found none"),
        ("A small pink circle moves slowly left on a grey background in dim light", "need one colour .* found none"),
        ("A red circle moves slowly left on a grey background in dim light", "need one size"),
        ("A small red circle moves left on a grey background in dim light", "need one speed"),
        ("A small red circle moves slowly on a grey background in dim light", "need one direction"),
        ("A small red circle moves slowly left and right on a grey background in dim light", "found left and right"),
        ("A small red circle and small blue star move slowly up on a grey background in dim light", "circle and star"),
        ("A small red circle moves slowly up on a grey background in dim light, lit from above", "found above and dim"),
        ("A small red circle moves up slowly on a background fading from grey to grey in dim light", "cannot fade"),
    ],
)
def test_what_is_missing_or_unclear_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(text)
