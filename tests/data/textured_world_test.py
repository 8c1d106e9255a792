"""Scenes of the textured style: the state of every frame, and what is drawn of it."""

import dataclasses
import hashlib

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from helios_jax.data.moving_shapes import caption, parse_caption, vocabulary
from helios_jax.data.moving_shapes.looks import (
    ABSENCES,
    BAR_COLOUR,
    MAX_HUE,
    ONE,
    TURN,
    Absence,
    Bar,
    Look,
    Texture,
    brightness,
    sine,
    tinted,
)
from helios_jax.data.moving_shapes.paths import centres, reach
from helios_jax.data.moving_shapes.rendering import coverage, fade, render
from helios_jax.data.moving_shapes.sight import bar_sides, clear_of_all, out_of_sight, spells, uncut
from helios_jax.data.moving_shapes.styles import check_style, sample_scene
from helios_jax.data.moving_shapes.textured_rendering import rotated_coverage
from helios_jax.data.moving_shapes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    KINDS,
    SPEEDS,
    Description,
    Scene,
    Shape,
)

SMOOTH = Texture(pattern="stripes", period=1536, angle=0, phases=(0, 0))


def scene_number(index: int, **options) -> Scene:
    return sample_scene(40, index, style="textured", **options)


SCENES = [scene_number(index) for index in range(60)]


def look_of(count: int, **changes) -> Look:
    fields = {
        "hue": 0,
        "lightness": 256,
        "ground": SMOOTH,
        "textures": (SMOOTH,) * count,
        "angles": (0,) * count,
        "spins": (0,) * count,
    }
    return Look(**fields | changes)


def test_scenes_and_bytes_are_the_same_everywhere():
    scene = sample_scene(-3, 12345678901, style="textured")
    digests = [
        hashlib.sha256(repr(scene).encode()).hexdigest()[:16],
        *(hashlib.sha256(render(scene, 40, *size).tobytes()).hexdigest()[:16] for size in ((64, 64), (72, 128))),
        hashlib.sha256(render(sample_scene(0, 3, style="textured"), 40, 64, 64).tobytes()).hexdigest()[:16],
    ]
    assert digests == ["ffdf5e9f13573343", "019f4f12903da05d", "4e28016d0e8a54fa", "622473e488074e4d"]


def test_the_table_of_sines_does_not_depend_on_rounding():
    angles = np.arange(0, TURN, 16)
    exact = ONE * np.sin(2 * np.pi * angles / TURN)
    assert abs(exact - np.floor(exact) - 0.5).min() > 1e-5
    np.testing.assert_array_equal(sine(angles), np.round(exact))


@pytest.mark.parametrize("hue", [-MAX_HUE, -700, 0, MAX_HUE])
def test_hue_is_a_rotation_about_the_grey_axis(hue):
    turn = Rotation.from_rotvec(2 * np.pi * hue / TURN * np.ones(3) / np.sqrt(3))
    for colour in [*COLOURS.values(), BAR_COLOUR, *(one for pair in BACKGROUNDS.values() for one in pair)]:
        for lightness in (200, 248):
            expected = turn.apply(colour) * lightness / 256
            assert expected.max() <= 255.5
            np.testing.assert_allclose(tinted(colour, look_of(0, hue=hue, lightness=lightness)), expected, atol=0.8)


@pytest.mark.parametrize("period", [4.0, 5.3, 8.0])
@pytest.mark.parametrize("size", [64, 128])
def test_textures_have_their_period_in_pixels(period, size):
    texture = Texture(pattern="stripes", period=round(256 * period), angle=TURN // 4, phases=(0, 0))
    y = np.arange(size)[:, None] * 256 + 128
    factor = brightness(texture, np.zeros((1, size), np.int32), y.astype(np.int32)) / 256
    waves = 0.85 - 0.15 * np.sin(2 * np.pi * y / 256 / period)
    np.testing.assert_allclose(factor, np.broadcast_to(waves, (size, size)), atol=0.02)


def test_checks_are_two_waves():
    checks = Texture(pattern="checks", period=1280, angle=5000, phases=(20000, 40000))
    waves = [
        dataclasses.replace(checks, pattern="stripes", angle=5000 + n * TURN // 4, phases=(checks.phases[n], 0))
        for n in (0, 1)
    ]
    y, x = (np.indices((40, 40)) * 256).astype(np.int32)
    one, other = (256 - brightness(wave, x, y) for wave in waves)
    np.testing.assert_allclose(256 - brightness(checks, x, y), (one + other) / 2, atol=1.01)


def test_a_turned_surface_has_a_turned_texture():
    y, x = (np.indices((40, 40)) * 256 - 5000).astype(np.int32)
    quarter = brightness(SMOOTH, x, y, TURN // 4)
    np.testing.assert_allclose(quarter, brightness(SMOOTH, y, -x), atol=1)


@pytest.mark.parametrize("kind", KINDS)
def test_rotated_outlines(kind):
    """The centroid is the middle, the angle 0 is that of the other style, and turns are clockwise."""
    line = ((np.arange(60) - 29.5) * 256).astype(np.int32)
    angles = np.array([0, 3000, 3000 + TURN // 4])
    dx, dy = (np.broadcast_to(axis, (3, *axis.shape)) for axis in (line[None, :], line[:, None]))
    cover = rotated_coverage(kind, dx, dy, 20 * 256, angles) / 256
    assert cover.sum((1, 2)) == pytest.approx(np.full(3, KINDS[kind] * 400), rel=0.01)
    for axis in (1, 2):
        assert abs((cover.sum(axis) * line).sum(1) / 256 / cover.sum((1, 2))).max() < 0.05
    # The same outline, drawn about the middle of its box as the plain style does.
    below = {"circle": 0, "square": 0, "triangle": 0.2887, "star": 0.1004}[kind] * 20 * 256
    upright = coverage(kind, line[None, :].astype(np.int64), line[:, None] + round(below), 20 * 256) / 256
    np.testing.assert_allclose(cover[0], upright, atol=0.03)
    np.testing.assert_allclose(cover[2], np.rot90(cover[1], -1), atol=0.03)


def test_spins_turn_shapes_by_angle_and_frame():
    shape = Shape(kind="square", colour="red", size="large", speed="slow", direction="right")
    description = Description(shapes=(shape,), background="grey", lighting="bright")
    still = Scene(description=description, starts=((0, 2**19),), look=look_of(1))
    spinning = dataclasses.replace(still, look=look_of(1, spins=(200,)))
    # After 40 frames it has turned by 8000 / 65536 of a turn.
    turned = dataclasses.replace(still, look=look_of(1, angles=(8000,)))
    np.testing.assert_array_equal(render(spinning, range(40, 41), 64, 64), render(turned, range(40, 41), 64, 64))
    assert (render(spinning, 1, 64, 64) == render(still, 1, 64, 64)).all()


def test_frames_do_not_depend_on_those_before():
    for scene in SCENES[:4]:
        whole = render(scene, range(280, 320), 64, 72)
        np.testing.assert_array_equal(render(scene, range(300, 320), 64, 72), whole[20:])


def leaver(frames: int, speed: str = "fast", direction: str = "left", kind: str = "circle") -> Scene:
    shape = Shape(kind=kind, colour="blue", size="small", speed=speed, direction=direction)
    return Scene(
        description=Description(
            shapes=(shape,),
            background="cream",
            lighting="bright",
            absence=Absence(colour="blue", beyond="frame", frames=frames),
        ),
        starts=((2**19, 2**19),),
        look=look_of(1),
    )


@pytest.mark.parametrize("frames", ABSENCES)
@pytest.mark.parametrize(("speed", "direction"), [("fast", "left"), ("medium", "down"), ("slow", "upper right")])
def test_a_shape_is_away_for_the_frames_that_its_caption_says(frames, speed, direction):
    scene = leaver(frames, speed, direction, "star")
    (spell, *_) = spells(scene, range(600), 64, 64)
    assert spell.hidden in (frames, frames + 1)
    assert spell.back > spell.left + frames


def test_leaving_in_closed_form():
    # Half width 6.5 pixels of 64; it starts in the middle, at 32, and moves 1 pixel per frame to the left.
    scene = leaver(16)
    x = centres(scene, range(200), 64, 64)[0, :, 0] / 256
    assert x[:39].tolist() == [32 - t for t in range(39)]
    # Out of sight at -6.5 after 38.5 frames, 8 pixels further it turns, and is in sight again after 54.5.
    assert x[46:48].tolist() == [-14, -14]
    assert x[55:80].tolist() == [-6 + t for t in range(25)]
    assert out_of_sight(scene, range(100), 64, 64)[0].nonzero()[0].tolist() == list(range(39, 55))
    (spell,) = spells(scene, range(100), 64, 64)
    assert (spell.left, spell.hidden, spell.back) == (39, 16, 68)  # whole at 6.5
    assert x[55 + 63] == 57  # the other border mirrors it, as ever


def test_out_of_sight_is_where_removing_the_shape_changes_nothing():
    """For every scene with an absence, against the pixels; and ``uncut`` shapes have all of theirs."""
    checked = 0
    for scene in SCENES:
        absent = scene.description.absent
        if absent is None or len(scene.description.shapes) > 1:
            continue
        times = range(0, 330, 3)
        hidden, whole = out_of_sight(scene, times, 64, 64)[0], uncut(scene, times, 64, 64)[0]
        # Without light and texture, only the shape has its colour.
        bare = dataclasses.replace(
            scene,
            description=dataclasses.replace(scene.description, lighting="bright", background="grey"),
            look=dataclasses.replace(scene.look, hue=0, lightness=256),
        )
        frames = render(bare, times, 64, 64).astype(float)
        saturation = (frames.max(-1) - frames.min(-1)).sum((1, 2))
        assert (saturation[hidden] == 0).all()
        assert saturation[whole].min() > 0.8 * saturation[whole].max()
        checked += hidden.any()
    assert checked >= 5


def test_absent_shapes_return_with_the_look_they_had():
    """A spin that returns to the same angle, at the same place: the same pixels before and after the absence."""
    scene = leaver(16)
    spinning = dataclasses.replace(scene, look=look_of(1, spins=(TURN // 16,)))
    x = centres(spinning, range(200), 64, 64)[0, :, 0]
    before, after = next((a, b) for a in range(20) for b in range(80, 200) if x[a] == x[b] and (b - a) % 16 == 0)
    one, other = (render(spinning, range(t, t + 1), 64, 64) for t in (before, after))
    np.testing.assert_array_equal(one, other)


def test_bars_hide_small_shapes_and_leave_them_room():
    kinds, hidden = set(), []
    for index in range(240):
        scene = sample_scene(41, index, style="textured")
        absence, absent = scene.description.absence, scene.description.absent
        kinds.add(absence.beyond if absence else None)
        if absence is None or absence.beyond == "frame":
            continue
        assert absent is scene.description.shapes[-1]
        assert absent.size == "small"
        first = spells(scene, range(700), 64, 64)[0]
        hidden.append(first.hidden)
        _, begin, end = bar_sides(scene, 64, 64)
        across = 2 * reach(absent, 64, rotates=True)
        assert min(begin, 64 * 256 - end) >= across
        assert uncut(scene, range(1), 64, 64)[-1, 0]
    assert kinds == {None, "frame", "bar"}
    assert min(hidden) in (8, 9, 10)
    assert max(hidden) <= 80
    assert len(set(hidden)) > 15


def test_bars_are_in_front_of_the_absent_shape_and_behind_the_others():
    front = Shape(kind="circle", colour="yellow", size="large", speed="slow", direction="right")
    absent = Shape(kind="circle", colour="red", size="small", speed="slow", direction="right")
    description = Description(
        shapes=(front, absent),
        background="grey",
        lighting="bright",
        absence=Absence(colour="red", beyond="bar"),
    )
    look = look_of(2, bar=Bar(gap=64, width=96))
    scene = Scene(description=description, starts=((2**19, 0), (0, 2**20)), look=look)
    # Columns 24 to 48 are the bar. The red circle is 13 pixels wide, starts at the border and moves by a quarter.
    frames = render(scene, 150, 64, 64)
    assert (frames[0, 32, 24:48] == BAR_COLOUR).all()
    assert abs(frames[0, 10, 32].astype(int) - (245, 225, 30)).max() < 80  # darkened by its texture
    hidden = out_of_sight(scene, range(150), 64, 64)[1]
    assert hidden.nonzero()[0].tolist() == list(range(96, 141))
    lower = frames[hidden, 40:, 24:48]
    assert (lower == BAR_COLOUR).all()


def test_clear_shapes_touch_nothing():
    shapes = tuple(
        Shape(kind="circle", colour=colour, size="small", speed="fast", direction=direction)
        for colour, direction in (("red", "right"), ("blue", "left"))
    )
    description = Description(shapes=shapes, background="grey", lighting="bright")
    scene = Scene(description=description, starts=((0, 2**19), (2**20, 2**19)), look=look_of(2))
    # Centres are 51 pixels apart and approach by 2 per frame; they touch below 13.
    clear = clear_of_all(scene, range(40), 64, 64)
    np.testing.assert_array_equal(clear[0], clear[1])
    assert clear[0].tolist() == [abs(51 - 2 * t) >= 13 for t in range(40)]


def test_absent_shapes_leave_early_and_others_as_in_the_plain_style():
    for scene in SCENES:
        shapes, paths = scene.description.shapes, centres(scene, range(16), 64, 64)
        for shape, path in zip(shapes, paths, strict=True):
            assert (np.sign(np.diff(path, axis=0)) == DIRECTIONS[shape.direction]).all()
        absence = scene.description.absence
        if absence is not None and absence.beyond == "frame":
            number = shapes.index(scene.description.absent)
            inside = uncut(scene, range(70), 64, 64)[number]
            assert inside[:16].all()
            assert not inside[:66].all()


def test_captions_are_read_back_and_say_nothing_of_the_look():
    words = set(vocabulary(absences=True))
    for index in range(60):
        scene = sample_scene(42, index, style="textured")
        text = caption(scene)
        assert parse_caption(text) == scene.description, text
        other = dataclasses.replace(scene.look, hue=-scene.look.hue, lightness=222, spins=scene.look.angles)
        assert caption(dataclasses.replace(scene, look=other)) == text
        assert set(text.lower().replace(".", " . ").replace(",", " , ").replace(";", " ; ").split()) <= words
    assert set(vocabulary()) < words


def test_captions_of_absences_in_full():
    scene = leaver(48)
    assert caption(scene) == (
        "A small blue circle moves quickly to the left. It bounces off the borders; the blue circle leaves the frame "
        "on the left and returns after 48 frames. The background is plain cream. The light is bright."
    )
    text = (
        "A small blue ball goes fast to the left on a cream background in bright light; the blue ball leaves the frame "
        "on the left and comes back after 48 frames"
    )
    assert parse_caption(text) == scene.description
    text = "A small blue disc goes fast upwards on a cream background in dim light"
    text = f"{text}; a dark bar hides the blue disc on its way"
    assert parse_caption(text).absence == Absence(colour="blue", beyond="bar")


@pytest.mark.parametrize(
    ("clause", "message"),
    [
        ("the red ball passes behind a dark bar", "no shape is a red ball"),
        ("the blue star passes behind a dark bar", "no shape is a blue star"),
        ("the blue disc leaves the frame on the right and returns after 48 frames", "moves left leaves on the left"),
        ("the blue disc leaves the frame on the left and returns after 47 frames", "8, 16, .* frames, not 47"),
        (
            "a dark bar hides the blue disc on its way; the blue disc passes behind a dark bar",
            "one shape .* found 2",
        ),
    ],
)
def test_impossible_absences_are_refused(clause, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(f"A small blue disc goes fast to the left on a cream background in bright light; {clause}")


def test_scenes_that_do_not_fit_are_refused():
    scene = leaver(8)
    with pytest.raises(ValueError, match="away at times needs a look"):
        dataclasses.replace(scene, look=None)
    with pytest.raises(ValueError, match="a texture for each of 1 shapes, got 2"):
        dataclasses.replace(scene, look=look_of(2))
    with pytest.raises(ValueError, match="a bar if and only if"):
        dataclasses.replace(scene, look=look_of(1, bar=Bar(gap=64, width=70)))
    with pytest.raises(ValueError, match="style must be one of plain, textured, got 'odd'"):
        check_style("odd")
    with pytest.raises(ValueError, match="num_shapes must lie in"):
        sample_scene(0, 0, style="textured", num_shapes=8)


def test_fades_and_grounds():
    """The background is the tinted fade under its texture, in the light."""
    scene = dataclasses.replace(
        SCENES[0], description=dataclasses.replace(SCENES[0].description, lighting="bright", absence=None)
    )
    look = dataclasses.replace(scene.look, bar=None)
    scene = dataclasses.replace(scene, look=look)
    frame = render(scene, 1, 64, 64)[0].astype(float)
    ground = fade(*(tinted(one, look) for one in BACKGROUNDS[scene.description.background]), 64, 64)
    ratio = (frame / ground)[[0, -1]].mean(-1)  # shapes seldom touch these rows
    assert ratio.min() > 0.68
    assert ratio.max() <= 1.01
    assert np.median(ratio) == pytest.approx(0.85, abs=0.06)


def test_speeds_are_those_of_the_plain_style():
    for scene in SCENES[:10]:
        for shape, path in zip(scene.description.shapes, centres(scene, range(3), 64, 64), strict=True):
            step = np.linalg.norm(path[1] - path[0]) / 64
            assert step == pytest.approx(SPEEDS[shape.speed], rel=0.01)
