"""The scorer finds everything in degraded videos, and nothing where there is nothing."""

import dataclasses

import numpy as np
import pytest
from scipy import fft, ndimage

from helios_jax.data.moving_shapes.captions import caption
from helios_jax.data.moving_shapes.motion import Motion
from helios_jax.data.moving_shapes.observation import SeenShape, observe
from helios_jax.data.moving_shapes.rendering import render
from helios_jax.data.moving_shapes.scoring import score
from helios_jax.data.moving_shapes.styles import sample_scene
from helios_jax.data.moving_shapes.world import COLOURS, DIRECTIONS, KINDS, SIZES, SPEEDS, Description, Scene, Shape

SIZE = (64, 64)
SLOW = pytest.mark.slow
ATTRIBUTES = {"kind": KINDS, "size": SIZES, "speed": SPEEDS, "direction": DIRECTIONS}


def spoil(frames: np.ndarray, seed: int) -> np.ndarray:
    """Blur of one pixel, noise of 0.05, and quantised cosine transforms of 8 x 8 blocks, as in JPEG."""
    values = ndimage.gaussian_filter(frames.astype(np.float32), (0, 1, 1, 0))
    values += 0.05 * 255 * np.random.default_rng(seed).standard_normal(frames.shape, np.float32)
    count, height, width, _ = frames.shape
    blocks = values.clip(0, 255).reshape(count, height // 8, 8, width // 8, 8, 3)
    steps = 8 * (1 + np.add.outer(np.arange(8), np.arange(8)) / 2)[:, None, :, None].astype(np.float32)
    rounded = np.round(fft.dctn(blocks, axes=(2, 4), norm="ortho") / steps) * steps
    return fft.idctn(rounded, axes=(2, 4), norm="ortho").reshape(frames.shape).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("num_shapes", "scenes", "part"),
    [
        (1, 25, 0.96),
        pytest.param(2, 20, 0.95, marks=SLOW),
        pytest.param(3, 20, 0.95, marks=SLOW),
    ],
)
def test_attributes_are_recovered_from_spoilt_videos(num_shapes, scenes, part):
    perfect, wrong = 0, []
    for index in range(scenes):
        scene = sample_scene(100 + num_shapes, index, num_shapes=num_shapes)
        result = score(spoil(render(scene, 99, *SIZE), index), scene)
        perfect += result.value == 1
        if result.value < 1:
            wrong.append((index, result))
    assert perfect >= part * scenes, wrong


@pytest.mark.parametrize("frames_and_size", [pytest.param((99, 128, 128), marks=SLOW), (33, 64, 96), (66, 96, 64)])
def test_other_lengths_and_sizes(frames_and_size):
    scenes = [sample_scene(21, index) for index in range(5)]
    assert all(score(render(scene, *frames_and_size), caption(scene)).value == 1 for scene in scenes)


def test_what_is_seen():
    shape = Shape(kind="star", colour="green", size="medium", speed="fast", direction="lower left")
    scene = Scene(
        description=Description(shapes=(shape,), background="cream to grey", lighting="right"),
        starts=((3 * 2**18, 2**18),),
    )
    # The room is 64 - 19 = 45 pixels. Both ways are 3/4 of it, 33.75 pixels at 0.707 per frame: both borders
    # are met at frame 47.7, and not again before frame 111.
    seen = observe(render(scene, 99, *SIZE))
    motion = Motion(speed="fast", direction="lower left", turns=2, bounces=True)
    assert seen.shapes == (SeenShape(colour="green", kind="star", size="medium", motion=motion, copies=1),)
    assert (seen.background, seen.lighting) == ("cream to grey", "right")


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_one_wrong_word_makes_one_wrong_attribute(name):
    options = list(ATTRIBUTES[name])
    for index in range(6):
        scene = sample_scene(31, index, num_shapes=1)
        (shape,) = scene.description.shapes
        other = options[(options.index(getattr(shape, name)) + 1 + index % (len(options) - 1)) % len(options)]
        wrong = dataclasses.replace(scene.description, shapes=(dataclasses.replace(shape, **{name: other}),))
        result = score(render(scene, 99, *SIZE), wrong)
        held = dataclasses.asdict(result.shapes[0])
        assert [attribute for attribute, value in held.items() if not value] == [name]
        assert result.recovered == (name in ("size", "speed"))
        assert result.value == pytest.approx(8 / 9)  # of six attributes, count, background and light


def test_wrong_surroundings_and_counts():
    scene = sample_scene(32, 0, num_shapes=2)
    frames, description = render(scene, 99, *SIZE), scene.description
    others = dataclasses.replace(description, background="grey to pale blue", lighting="dim")
    result = score(frames, others)
    assert (result.background, result.lighting, result.recovered) == (False, False, True)
    fewer = score(frames, dataclasses.replace(description, shapes=description.shapes[:1]))
    assert not fewer.count
    assert not fewer.recovered


def test_a_shape_of_another_colour_is_no_hit():
    for index in range(5):
        scene = sample_scene(33, index, num_shapes=1)
        (shape,) = scene.description.shapes
        colours = list(COLOURS)
        other = colours[(colours.index(shape.colour) + 1 + index) % len(colours)]
        wrong = dataclasses.replace(scene.description, shapes=(dataclasses.replace(shape, colour=other),))
        assert score(render(scene, 99, *SIZE), wrong).value == 0


def test_two_shapes_of_one_colour_are_two():
    shapes = [
        Shape(kind="circle", colour=colour, size="small", speed="slow", direction="right") for colour in ("red", "blue")
    ]
    scene = Scene(
        description=Description(shapes=tuple(shapes), background="grey", lighting="bright"),
        starts=((0, 0), (0, 2**20)),
    )
    frames = render(scene, 99, *SIZE)
    blue = (frames == COLOURS["blue"]).all(-1)
    frames[blue] = COLOURS["red"]
    result = score(frames, dataclasses.replace(scene.description, shapes=scene.description.shapes[:1]))
    assert result.seen.shapes[0].copies == 2
    assert not result.count


def nothing(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (99, *SIZE, 3)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), (3, 4, 4, 0))
    return {
        "black": np.zeros(shape, np.uint8),
        "white": np.full(shape, 255, np.uint8),
        "background": np.full(shape, 140, np.uint8),
        "noise": rng.integers(0, 256, shape).astype(np.uint8),
        "clouds": (128 + 50 * smooth / smooth.std()).clip(0, 255).astype(np.uint8),
    }[name]


@pytest.mark.parametrize("name", ["black", "white", "background", "noise", "clouds"])
def test_nothing_scores_nothing(name):
    frames = nothing(name)
    for index in range(4):
        result = score(frames, sample_scene(34, index))
        assert result.value == 0
        assert not result.recovered
        assert result.seen.shapes == ()


def test_motion_is_needed():
    for index in range(5):
        scene = sample_scene(35, index, num_shapes=1)
        frozen = score(np.repeat(render(scene, 1, *SIZE), 99, axis=0), scene).shapes[0]
        assert (frozen.colour, frozen.kind, frozen.size) == (True, True, True)
        assert (frozen.speed, frozen.direction, frozen.bounces) == (False, False, False)


def test_a_shape_that_turns_back_in_the_open_does_not_bounce():
    shape = Shape(kind="circle", colour="red", size="small", speed="fast", direction="right")
    scene = Scene(description=Description(shapes=(shape,), background="grey", lighting="bright"), starts=((0, 2**19),))
    forth = render(scene, 26, *SIZE)  # to the middle of the room
    seen = observe(np.concatenate([forth, forth[::-1]])).shapes[0]
    assert seen.motion.direction == "right"
    assert (seen.motion.turns, seen.motion.bounces) == (1, False)
