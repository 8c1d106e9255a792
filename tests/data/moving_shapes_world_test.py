"""Scenes: drawn exactly, and where everything is at any frame."""

import collections
import dataclasses

import numpy as np
import pytest

from helios_jax.data.moving_shapes.paths import centres, half_width
from helios_jax.data.moving_shapes.styles import sample_scene
from helios_jax.data.moving_shapes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    KINDS,
    LIGHTS,
    SIZES,
    SPEEDS,
    Description,
    Scene,
    Shape,
)

RED = Shape(kind="circle", colour="red", size="small", speed="fast", direction="right")


def scene_of(*shapes: Shape, starts: tuple) -> Scene:
    return Scene(description=Description(shapes=shapes, background="grey", lighting="bright"), starts=starts)


def test_bounce_in_closed_form():
    # Half width 26/256 of 64 pixels = 6.5, room 51 pixels; a fast shape goes 4/256 of 64 = 1 pixel per frame.
    scene = scene_of(RED, starts=((2**19, 2**20),))
    path = centres(scene, range(200), 64, 64)[0] / 256
    assert path[0].tolist() == [6.5 + 25.5, 6.5 + 51]
    assert path[25].tolist() == [57.0, 57.5]
    assert path[26].tolist() == [57.0, 57.5]  # 25.5 + 26 = 51.5 is half a pixel beyond, and comes back as far
    assert path[76, 0] == 7.0  # 25.5 + 76 = 101.5, twice the room less half a pixel
    assert path[77, 0] == 7.0
    assert path[102].tolist() == path[0].tolist()  # a full round: twice the room
    assert set(path[:, 1]) == {57.5}


def test_frames_do_not_depend_on_those_before():
    scene = sample_scene(0, 1, num_shapes=3)
    whole = centres(scene, range(1000), 64, 96)
    np.testing.assert_array_equal(centres(scene, range(990, 1000), 64, 96), whole[:, 990:])


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 160)])
def test_paths_reflect_as_a_simulation_does(size):
    for index in range(20):
        scene = sample_scene(3, index, num_shapes=2)
        for shape, start, path in zip(
            scene.description.shapes, scene.starts, centres(scene, range(400), *size) / 256, strict=True
        ):
            side, radius = min(size), SIZES[shape.size] / 256 * min(size)
            signs = np.array(DIRECTIONS[shape.direction])
            velocity = signs / np.linalg.norm(signs) * SPEEDS[shape.speed] * side / 256
            room = np.array(size[::-1]) - 2 * radius
            position = np.array(start) / 2**20 * room
            for frame in range(400):
                assert abs(path[frame] - radius - position).max() < 0.02, (index, frame)
                position += velocity
                for axis in (0, 1):
                    if position[axis] < 0:
                        position[axis], velocity[axis] = -position[axis], -velocity[axis]
                    elif position[axis] > room[axis]:
                        position[axis], velocity[axis] = 2 * room[axis] - position[axis], -velocity[axis]


def test_shapes_stay_within_the_frame():
    for index in range(30):
        scene = sample_scene(1, index)
        paths = centres(scene, range(0, 5000, 7), 72, 104)
        for shape, path in zip(scene.description.shapes, paths, strict=True):
            radius = half_width(shape, 72)
            assert path.min() >= radius
            assert (path <= np.array([104, 72]) * 256 - radius).all()


def test_scenes_are_the_same_everywhere():
    assert sample_scene(-3, 12345678901) == Scene(
        description=Description(
            shapes=(
                Shape(kind="star", colour="red", size="medium", speed="slow", direction="lower left"),
                Shape(kind="circle", colour="orange", size="small", speed="slow", direction="down"),
            ),
            background="cream to pale blue",
            lighting="dim",
        ),
        starts=((776733, 139321), (167858, 449841)),
        phrasing=48,
    )


def test_attributes_are_uniform():
    scenes = [sample_scene(9, index) for index in range(600)]
    shapes = [shape for scene in scenes for shape in scene.description.shapes]
    tables = {"kind": KINDS, "colour": COLOURS, "size": SIZES, "speed": SPEEDS, "direction": DIRECTIONS}
    samples = {name: ([getattr(shape, name) for shape in shapes], table) for name, table in tables.items()}
    samples["background"] = ([scene.description.background for scene in scenes], BACKGROUNDS)
    samples["lighting"] = ([scene.description.lighting for scene in scenes], LIGHTS)
    samples["count"] = ([len(scene.description.shapes) for scene in scenes], (1, 2, 3))
    for name, (values, options) in samples.items():
        counts, part = collections.Counter(values), 1 / len(options)
        assert set(counts) == set(options), name
        deviation = np.sqrt(len(values) * part * (1 - part))
        assert max(abs(counts[option] - len(values) * part) for option in options) < 4 * deviation, name


def test_shapes_go_straight_at_first_and_do_not_overlap_at_the_start():
    for index in range(200):
        scene = sample_scene(4, index)
        shapes, paths = scene.description.shapes, centres(scene, range(19), 64, 64)
        assert len({shape.colour for shape in shapes}) == len(shapes)
        areas = [KINDS[shape.kind] * SIZES[shape.size] ** 2 for shape in shapes]
        assert areas == sorted(areas)  # the smallest is in front
        for shape, path in zip(shapes, paths, strict=True):
            steps = np.diff(path, axis=0)  # even a fast and large shape has 18 frames to the border
            assert (np.sign(steps) == DIRECTIONS[shape.direction]).all()
        for j in range(len(shapes)):
            for i in range(j):
                distance = np.linalg.norm(paths[i, 0] - paths[j, 0])
                reach = half_width(shapes[i], 64) + half_width(shapes[j], 64)
                assert distance >= reach


def test_what_does_not_exist_is_refused():
    for name in ("kind", "colour", "size", "speed", "direction"):
        with pytest.raises(ValueError, match=f"{name} must be one of .* got 'odd'"):
            dataclasses.replace(RED, **{name: "odd"})
    with pytest.raises(ValueError, match="background must be one of"):
        Description(shapes=(RED,), background="red", lighting="dim")
    with pytest.raises(ValueError, match="differ in colour, got red, red"):
        Description(shapes=(RED, RED), background="grey", lighting="dim")
    with pytest.raises(ValueError, match="at least one shape"):
        Description(shapes=(), background="grey", lighting="dim")
    with pytest.raises(ValueError, match="one start"):
        scene_of(RED, starts=())
    with pytest.raises(ValueError, match="phrasing"):
        dataclasses.replace(scene_of(RED, starts=((0, 0),)), phrasing=64)
    with pytest.raises(ValueError, match="num_shapes must lie in"):
        sample_scene(0, 0, num_shapes=8)
