"""Scores per window: full marks for rendered truth, and the right numbers for known damage."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from helios_jax.data.moving_shapes import sample_scene, score_window, score_windows
from helios_jax.data.moving_shapes.looks import Absence, Look, Texture, tinted
from helios_jax.data.moving_shapes.measures import HIGH_BAND, cielab, high_band_power
from helios_jax.data.moving_shapes.paths import centres
from helios_jax.data.moving_shapes.rendering import render
from helios_jax.data.moving_shapes.sight import clear_of_all, returns_in, spells
from helios_jax.data.moving_shapes.world import PLAIN, Description, Scene, Shape

SIZE = (64, 64)
TEXTURE = Texture(pattern="checks", period=1400, angle=9000, phases=(1000, 30000))
SLOW = pytest.mark.slow


def scene_of(*shapes: Shape, starts: tuple, absence: Absence | None = None, **changes) -> Scene:
    count = len(shapes)
    fields = {
        "hue": 500,
        "lightness": 230,
        "ground": TEXTURE,
        "textures": (TEXTURE,) * count,
        "angles": (3000,) * count,
        "spins": (150,) * count,
    }
    description = Description(shapes=shapes, background="pale blue", lighting="bright", absence=absence)
    return Scene(description=description, starts=starts, look=Look(**fields | changes))


def square(direction: str = "right", speed: str = "slow", colour: str = "red") -> Shape:
    return Shape(kind="square", colour=colour, size="medium", speed=speed, direction=direction)


STILL = scene_of(square(), starts=((0, 2**19),))
"""From the left border to the right, in the middle of the height, at a quarter of a pixel per frame."""


@pytest.mark.parametrize(
    ("size", "scenes"), [(64, 2), pytest.param(64, 24, marks=SLOW), pytest.param(128, 6, marks=SLOW)]
)
def test_the_truth_gets_full_marks(size, scenes):
    windows, wrong, returns = 0, [], []
    for index in range(scenes):
        scene = sample_scene(50, index, style="textured")
        for window in score_windows(render(scene, 132, size, size), scene):
            windows += 1
            if not window.caption.recovered:
                wrong.append((index, window.caption))
            returns += window.returns
            assert np.nanmax(window.background_distance) == 0
            assert not (window.shape_distance > 0).any()
            assert (window.high_band_ratio == 1).all()
            known = window.path_error[np.isfinite(window.path_error)]
            assert (known < 0.02).all()
            ratios = window.speed_ratio[np.isfinite(window.speed_ratio)]
            assert not len(ratios) or np.median(ratios) == pytest.approx(1, abs=0.05)
    assert len(wrong) <= 0.02 * windows, wrong
    assert all(one.same for one in returns)


def test_a_window_does_not_depend_on_the_others():
    scene = sample_scene(50, 1, style="textured")
    frames = render(scene, 66, *SIZE)
    frames[40:] = frames[40:] // 8 * 7
    whole = score_windows(frames, scene)
    for number, start in enumerate((0, 33)):
        alone = score_window(frames[start : start + 33], scene, start, whole[0].reference if start else None)
        assert (alone.start, alone.caption, alone.returns) == (start, whole[number].caption, whole[number].returns)
        for name in ("path_error", "speed_ratio", "background_distance", "shape_distance", "high_band_ratio"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(whole[number], name))


@pytest.mark.parametrize("pixels", [1, 3, 6])
def test_a_shifted_video_is_off_by_the_shift(pixels):
    # The background is the same in all columns but for its texture, so wrapping around leaves no seam to speak of.
    shifted = np.roll(render(STILL, 33, *SIZE), pixels, axis=2)
    window = score_window(shifted, STILL, 0)
    assert np.nanmedian(window.path_error) == pytest.approx(pixels / 64, abs=0.003)
    assert np.nanmax(window.path_error) == pytest.approx(pixels / 64, abs=0.01)
    assert np.nanmedian(window.speed_ratio) == pytest.approx(1, abs=0.02)
    assert window.caption.shapes[0].direction


@pytest.mark.parametrize("factor", [2, 3])
def test_a_slowed_video_is_behind_by_the_way_it_lost(factor):
    scene = scene_of(square(speed="medium"), starts=((0, 2**19),))
    times = np.arange(33)
    window = score_window(render(scene, 33, *SIZE)[times // factor], scene, 0)
    # Half a pixel per frame, of which it goes a factor less: behind by t - floor(t / factor) frames.
    behind = 0.5 / 64 * (times - times // factor)
    np.testing.assert_allclose(window.path_error[0], behind, atol=0.004)
    assert np.nanmean(window.speed_ratio[0, 6:]) == pytest.approx(1 / factor, rel=0.04)
    assert window.caption.shapes[0].direction


def test_a_frozen_video_has_no_speed():
    frozen = np.repeat(render(STILL, 1, *SIZE), 33, axis=0)
    window = score_window(frozen, STILL, 0)
    assert np.nanmax(window.speed_ratio) < 0.01
    assert not window.caption.shapes[0].direction
    np.testing.assert_allclose(window.path_error[0], 0.25 / 64 * np.arange(33), atol=0.003)


def test_hue_that_drifts_by_a_known_angle():
    """The distance of the background is that between its colour and the same after the rotation."""
    frames = render(STILL, 66, *SIZE)
    angles = np.radians(0.4 * np.arange(66))
    turned = frames.copy()
    for number, angle in enumerate(angles):
        turn = Rotation.from_rotvec(angle * np.ones(3) / np.sqrt(3))
        turned[number] = turn.apply(frames[number].reshape(-1, 3)).reshape(frames[number].shape).round().clip(0, 255)
    windows = score_windows(turned, STILL)
    distance = np.concatenate([window.background_distance for window in windows])
    colour = 0.85 * np.array(tinted(PLAIN["pale blue"], STILL.look)) / 255
    rotated = np.stack([Rotation.from_rotvec(angle * np.ones(3) / np.sqrt(3)).apply(colour) for angle in angles])
    expected = np.linalg.norm(cielab(rotated) - cielab(colour), axis=-1)
    np.testing.assert_allclose(distance, expected, atol=0.3)  # colours are rounded to whole numbers
    assert expected[-1] > 10
    of_shape = np.concatenate([window.shape_distance[0] for window in windows])
    assert of_shape[0] == 0
    assert of_shape[20] > of_shape[10] > of_shape[5] > 0.3


def test_darker_by_a_known_factor():
    frames = render(STILL, 66, *SIZE)
    frames[33:] = (frames[33:] * 0.9).round()
    before, after = score_windows(frames, STILL)
    assert before.background_distance.max() == 0
    for colour, distance in ((PLAIN["pale blue"], after.background_distance), ((225, 30, 30), after.shape_distance[0])):
        mean = 0.85 * np.array(tinted(colour, STILL.look)) / 255
        expected = np.linalg.norm(cielab(0.9 * mean) - cielab(mean))
        assert np.median(distance) == pytest.approx(expected, rel=0.04)
    assert after.caption.recovered


def test_cielab_of_known_colours():
    """Values of Lindbloom's calculator (sRGB, D65)."""
    known = {
        (1.0, 1.0, 1.0): (100, 0, 0),
        (1.0, 0.0, 0.0): (53.2408, 80.0925, 67.2032),
        (0.0, 1.0, 0.0): (87.7347, -86.1827, 83.1793),
        (0.0, 0.0, 1.0): (32.2970, 79.1875, -107.8602),
        (0.5, 0.5, 0.5): (53.3890, 0, 0),
        (0.01, 0.01, 0.01): (0.6991, 0, 0),
    }
    np.testing.assert_allclose(cielab(np.array(list(known))), list(known.values()), atol=0.01)
    assert np.isnan(cielab(np.full((2, 3), np.nan))).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 63)])
def test_high_band_power_of_a_wave(height, width):
    """By Parseval's theorem the power of a wave is half its squared amplitude times the mean square of the window."""
    y = np.arange(height)[:, None]
    window = 0.375**2  # of a Hann window along both axes
    for period, counts in ((5.7, 1), (20.0, 0)):
        wave = 0.5 + 0.3 * np.sin(2 * np.pi * y / period) * np.ones((1, width))
        frames = np.repeat((255 * wave).round().astype(np.uint8)[None, ..., None], 3, axis=-1)
        assert high_band_power(frames)[0] == pytest.approx(counts * 0.3**2 / 2 * window, rel=0.01, abs=2e-5)


@pytest.mark.parametrize("weight", [0.1, 0.25])
def test_blur_takes_fine_detail_by_its_response(weight):
    """A kernel (w, 1 - 2w, w) in both directions has the response 1 - 2w (1 - cos 2 pi f) at the frequency f."""
    frames = render(STILL, 33, *SIZE)
    blurred = frames.astype(float)
    for axis in (1, 2):
        sides = np.roll(blurred, 1, axis) + np.roll(blurred, -1, axis)
        blurred = (1 - 2 * weight) * blurred + weight * sides
    window = score_window(blurred.round().astype(np.uint8), STILL, 0)
    response = 1 - 2 * weight * (1 - np.cos(2 * np.pi * np.fft.fftfreq(64)))
    luma = frames @ np.array([0.2126, 0.7152, 0.0722]) / 255
    hann = np.hanning(129)[1::2]
    power = np.square(np.abs(np.fft.fft2((luma - luma.mean((1, 2), keepdims=True)) * np.outer(hann, hann))))
    high = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)) > HIGH_BAND
    expected = (power * high * np.outer(response, response) ** 2).sum((1, 2)) / (power * high).sum((1, 2))
    np.testing.assert_allclose(window.high_band_ratio, expected, rtol=0.05)
    assert expected.max() < 0.9
    assert window.caption.recovered


LEAVER = scene_of(
    Shape(kind="star", colour="blue", size="medium", speed="fast", direction="left"),
    square(direction="down", colour="orange"),
    starts=((2**18, 2**17), (2**20, 0)),
    absence=Absence(colour="blue", beyond="frame", frames=32),
)


def test_returns_are_in_the_first_window_that_shows_them():
    (spell, *_) = spells(LEAVER, range(132), *SIZE)
    assert spell.hidden == 32
    found = {start: returns_in(LEAVER, range(start, start + 33), *SIZE) for start in range(0, 132, 33)}
    (start,) = (start for start, one in found.items() if spell in one)
    clear = clear_of_all(LEAVER, range(spell.back, start + 33), *SIZE)[0]
    assert clear[max(0, start - spell.back) :].sum() >= 6
    assert clear[: max(0, start - spell.back)].sum() < 6


@pytest.mark.parametrize("replacement", ["kind", "size", "colour", "gone", "same"])
def test_what_comes_back_is_compared(replacement):
    (spell, *_) = spells(LEAVER, range(132), *SIZE)
    star, other = LEAVER.description.shapes
    changes = {"kind": {"kind": "circle"}, "size": {"size": "small"}, "colour": {"colour": "yellow"}}
    changed = dataclasses.replace(star, **changes.get(replacement, {}))
    absence = dataclasses.replace(LEAVER.description.absence, colour=changed.colour)
    description = dataclasses.replace(LEAVER.description, shapes=(changed, other), absence=absence)
    different = dataclasses.replace(LEAVER, description=description)
    if replacement == "gone":
        different = scene_of(other, starts=LEAVER.starts[1:])
    frames = np.concatenate(
        [render(LEAVER, spell.left + 5, *SIZE), render(different, range(spell.left + 5, 132), *SIZE)]
    )
    (start,) = (start for start in range(0, 132, 33) if spell in returns_in(LEAVER, range(start, start + 33), *SIZE))
    first = score_window(frames[:33], LEAVER, 0)
    window = score_window(frames[start : start + 33], LEAVER, start, first.reference)
    (found,) = window.returns
    assert found.spell == spell
    assert found.colour == (replacement not in ("colour", "gone"))
    assert found.kind == (replacement in ("size", "same"))
    assert found.size == (replacement in ("kind", "same"))
    assert found.same == (replacement == "same")
    assert window.caption.count == (replacement != "colour")
    assert first.caption.value == 1


def test_what_the_scene_does_not_show_is_not_asked_for():
    """Of the star nothing can be seen from frame 32 to 63, and all of it from frame 84."""
    (spell, *_) = spells(LEAVER, range(132), *SIZE)
    assert (spell.left, spell.hidden, spell.back) == (32, 32, 84)
    first, away = score_windows(render(LEAVER, 66, *SIZE), LEAVER)
    assert (first.caption.recovered, away.caption.recovered) == (True, True)
    assert away.caption.shapes[0] is None
    assert away.caption.shapes[1].recovered
    assert np.isnan(away.path_error[0]).all()
    assert np.isnan(away.speed_ratio[0]).all()
    assert np.nanmax(away.path_error[1]) < 0.01
    assert (first.returns, away.returns) == ((), ())


def test_a_wrong_scene_scores_low():
    other = scene_of(
        Shape(kind="star", colour="green", size="large", speed="fast", direction="up"), starts=((2**19, 2**20),)
    )
    window = score_window(render(other, 33, *SIZE), STILL, 0)
    assert not window.caption.recovered
    assert window.caption.shapes[0] is not None
    assert not window.caption.shapes[0].colour
    assert not window.caption.count
    assert np.isnan(window.path_error).all()
    noise = np.random.default_rng(0).integers(0, 256, (33, *SIZE, 3)).astype(np.uint8)
    window = score_window(noise, STILL, 0)
    assert (window.caption.recovered, window.caption.background, window.caption.lighting) == (False, False, False)
    assert window.background_distance[0] == 0
    assert window.high_band_ratio.min() > 2


def test_impossible_windows_are_refused():
    frames = render(STILL, 33, *SIZE)
    with pytest.raises(ValueError, match="textured style; this one has no look"):
        score_window(frames, dataclasses.replace(STILL, look=None), 0)
    with pytest.raises(ValueError, match="at least 12 frames, got 11"):
        score_window(frames[:11], STILL, 0)
    with pytest.raises(ValueError, match="from frame 33 needs the reference"):
        score_window(frames, STILL, 33)
    with pytest.raises(ValueError, match="one window of 33 frames, got 32"):
        score_windows(frames[:32], STILL)


def test_paths_are_those_of_the_scene():
    """``path_error`` measures in shorter sides, also in wide frames."""
    shifted = np.roll(render(STILL, 33, 64, 96), 4, axis=2)
    window = score_window(shifted, STILL, 0)
    assert np.nanmedian(window.path_error) == pytest.approx(4 / 64, abs=0.004)
    assert centres(STILL, range(1), 64, 96)[0, 0, 1] == 32 * 256
