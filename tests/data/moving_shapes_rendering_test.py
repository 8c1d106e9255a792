"""Pixels of scenes: exact colours, exact areas, the same bytes everywhere."""

import hashlib
import math

import numpy as np
import pytest

from helios_jax.data.moving_shapes.paths import centres
from helios_jax.data.moving_shapes.rendering import backdrop, coverage, light, render
from helios_jax.data.moving_shapes.styles import sample_scene
from helios_jax.data.moving_shapes.world import COLOURS, KINDS, LIGHTS, PLAIN, Description, Scene, Shape


def still(*shapes: Shape, starts: tuple, background: str = "grey", lighting: str = "bright") -> Scene:
    return Scene(description=Description(shapes=shapes, background=background, lighting=lighting), starts=starts)


def large(kind: str, colour: str) -> Shape:
    return Shape(kind=kind, colour=colour, size="large", speed="slow", direction="right")


# A pentagram of width 2 has the circumradius R = 1 / sin 72 degrees and the inner radius R cos 72 / cos 36; it is made
# of ten triangles with these sides and an angle of 36 degrees between them.
SIN, COS = (lambda degrees: math.sin(math.radians(degrees))), (lambda degrees: math.cos(math.radians(degrees)))
STAR_AREA = 5 * COS(72) / COS(36) / SIN(72) ** 2 * SIN(36)

MIDDLE = (2**19, 2**19)


def test_bytes_are_the_same_everywhere():
    digests = [
        hashlib.sha256(render(sample_scene(*key), 40, *size).tobytes()).hexdigest()[:16]
        for key in ((0, 0), (-3, 12345678901))
        for size in ((64, 64), (72, 128))
    ]
    assert digests == ["2fa6d2c1d1ef7d4a", "caded2a9d04534c0", "c0b9d890a0c5754c", "5a685af4955831c4"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_middle_of_a_shape_has_its_colour(kind, colour):
    frame = render(still(large(kind, colour), starts=(MIDDLE,)), 1, 64, 64)[0]
    assert tuple(frame[32, 32]) == COLOURS[colour]
    assert tuple(frame[0, 0]) == PLAIN["grey"]


def test_light_scales_every_channel():
    red = large("circle", "red")
    dim = render(still(red, starts=(MIDDLE,), lighting="dim"), 1, 64, 64)[0]
    assert dim[32, 32].tolist() == [round(value * 140 / 256) for value in (225, 30, 30)]
    left = render(still(red, starts=(MIDDLE,), lighting="left"), 1, 64, 64)[0]
    assert left[5, 0].tolist() == [140] * 3
    assert left[5, 63].tolist() == [round(140 * 112 / 256)] * 3
    assert left[5, 21, 0] == round(140 * (256 - 144 / 3) / 256)  # a third of the way
    for name, corners in LIGHTS.items():
        field = light(name, 40, 56)[..., 0]
        assert [field[0, 0], field[0, -1], field[-1, 0], field[-1, -1]] == list(corners)


def test_a_background_fades_from_top_to_bottom():
    rows = backdrop("pale blue to cream", 65, 8)
    assert (rows == rows[:, :1]).all()
    assert rows[0, 0].tolist() == list(PLAIN["pale blue"])
    assert rows[64, 0].tolist() == list(PLAIN["cream"])
    middle = [(a + b) / 2 for a, b in zip(PLAIN["pale blue"], PLAIN["cream"], strict=True)]
    assert abs(rows[32, 0] - np.array(middle)).max() <= 0.5


@pytest.mark.parametrize(
    ("kind", "area"),
    [
        ("circle", math.pi),
        ("square", (2 * 0.82) ** 2),
        ("triangle", math.sqrt(3)),
        ("star", STAR_AREA),
    ],
)
@pytest.mark.parametrize("pixels", [20, 6.5])
def test_areas(kind, area, pixels):
    y, x = np.indices((64, 64)) * 256 + 128
    cover = coverage(kind, x - 32 * 256 - 31, y - 32 * 256 + 77, int(pixels * 256)) / 256
    assert cover.sum() == pytest.approx(area * pixels**2, rel=0.03 if pixels < 10 else 0.01)
    assert KINDS[kind] == pytest.approx(area, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_fill_the_width_that_they_claim(kind):
    line = np.arange(-60 * 256, 60 * 256, 64)
    dx, dy = np.meshgrid(line, line)
    inside = coverage(kind, dx, dy, 50 * 256) >= 128
    wide, high = (np.abs(axis[inside]).max() / 256 for axis in (dx, dy))
    assert wide == pytest.approx(41 if kind == "square" else 50, abs=0.5)
    assert high == pytest.approx({"circle": 50, "square": 41, "triangle": 43.3, "star": 47.6}[kind], abs=0.5)
    if kind in ("triangle", "star"):  # upright: near the top there is only the tip
        top = inside[np.abs(dy[:, 0] / 256 + high - 3) < 0.5]
        assert 0 < np.abs(dx[0][top.any(0)]).max() / 256 < 5


def test_the_first_shape_is_in_front():
    front, behind = large("square", "blue"), large("square", "yellow")
    frame = render(still(front, behind, starts=(MIDDLE, MIDDLE)), 1, 64, 64)[0]
    assert tuple(frame[32, 32]) == COLOURS["blue"]
    frame = render(still(behind, front, starts=(MIDDLE, MIDDLE)), 1, 64, 64)[0]
    assert tuple(frame[32, 32]) == COLOURS["yellow"]


def test_edges_are_covered_in_part():
    # A large square has a half side of 0.82 * 13.5 pixels around 32: its edge is at 20.930, so pixel 20 is covered
    # by 0.070 of its width, the inside by all.
    row = render(still(large("square", "red"), starts=(MIDDLE,)), 1, 64, 64)[0, 32, :, 0].astype(float)
    part = (row - 140) / (225 - 140)
    assert part[19] == 0
    assert part[20] == pytest.approx(0.07, abs=0.01)
    assert part[21] == 1


def test_centroids_follow_the_path():
    scene = still(large("circle", "red"), starts=((2**18, 2**18),))
    video = render(scene, 50, 64, 96).astype(float)
    cover = (video[..., 0] - 140) / (225 - 140)
    x = (cover.sum(1) @ (np.arange(96) + 0.5)) / cover.sum((1, 2))
    y = (cover.sum(2) @ (np.arange(64) + 0.5)) / cover.sum((1, 2))
    path = centres(scene, range(50), 64, 96)[0] / 256
    np.testing.assert_allclose(np.stack([x, y], -1), path, atol=0.05)


def test_ranges_of_frames_alone():
    scene = sample_scene(2, 5, num_shapes=3)
    whole = render(scene, 99, 64, 64)
    assert whole.shape == (99, 64, 64, 3)
    np.testing.assert_array_equal(render(scene, range(33, 66), 64, 64), whole[33:66])
    np.testing.assert_array_equal(render(scene, range(0, 99, 7), 64, 64), whole[::7])


def test_impossible_sizes_are_refused():
    scene = sample_scene(0, 0)
    with pytest.raises(ValueError, match="multiples of 8, got 60 x 64"):
        render(scene, 1, 60, 64)
    with pytest.raises(ValueError, match="at least one frame"):
        render(scene, 0, 64, 64)
    with pytest.raises(ValueError, match="counted from 0"):
        render(scene, range(-1, 3), 64, 64)
