"""Crops and aspects against closed forms; the filter itself is tested with reading."""

import numpy as np
import pytest

from helios_jax.media.resizing import centre_crop, nearest_size, resize


@pytest.mark.parametrize(
    ("crop", "size", "box"),
    [
        ((0, 48, 0, 32), (32, 48), (0, 0, 48, 32)),
        ((0, 48, 0, 32), (64, 96), (0, 0, 48, 32)),
        ((0, 48, 0, 32), (8, 8), (8, 0, 40, 32)),
        ((10, 30, 4, 28), (16, 32), (10, 11, 30, 21)),
        ((10, 110, 20, 121), (512, 512), (10, 20.5, 110, 120.5)),
        ((0, 832, 0, 480), (384, 640), (16, 0, 816, 480)),
        ((0, 1080, 0, 1920), (384, 640), (0, 636, 1080, 1284)),
    ],
)
def test_centre_crop(crop, size, box):
    assert centre_crop(crop, size) == pytest.approx(box)


def test_nearest_size():
    sizes = [(384, 640), (640, 384), (480, 480)]
    assert nearest_size(832 / 480, sizes) == (384, 640)
    assert nearest_size(9 / 16, sizes) == (640, 384)
    assert nearest_size(1.1, sizes) == (480, 480)
    # The geometric mean of 1 and 5/3 is the border.
    assert nearest_size((5 / 3) ** 0.5 * 1.001, sizes) == (384, 640)
    assert nearest_size((5 / 3) ** 0.5 / 1.001, sizes) == (480, 480)
    assert nearest_size(None, sizes) == (384, 640)


# The sizes that Helios was trained with (PKU-YuanGroup/Helios, ``helios/dataset``).
PUBLISHED = [(h, w) for h, w in ((384, 640), (384, 768), (320, 768), (512, 768), (448, 576))]
PUBLISHED = [*PUBLISHED, *((w, h) for h, w in PUBLISHED), (512, 512)]


@pytest.mark.parametrize(
    ("height", "width", "nearest"),
    [
        (480, 832, (384, 640)),
        (720, 1280, (384, 640)),
        (1280, 720, (640, 384)),
        (480, 640, (448, 576)),
        (1080, 1080, (512, 512)),
        (800, 1200, (512, 768)),
        (500, 1000, (384, 768)),
        (804, 1920, (320, 768)),
        (1920, 804, (768, 320)),
    ],
)
def test_the_nearest_of_the_published_sizes(height, width, nearest):
    assert nearest_size(width / height, PUBLISHED) == nearest


def test_nothing_to_do_copies_nothing():
    frame = np.zeros((8, 16, 3), np.uint8)
    assert resize(frame, 8, 16) is frame
    assert resize(frame, 8, 16, box=(0.0, 0.0, 16.0, 8.0)) is frame
    assert resize(frame, 8, 16, box=(0, 0, 8, 4)) is not frame


def test_a_box_is_cut_out_before_it_is_resized():
    """A picture that is linear in x keeps its values at the places that the pixels' centres move to."""
    frame = np.broadcast_to(np.arange(64, dtype=np.float32)[None, :, None] / 64, (16, 64, 3))
    halved = resize(frame, 8, 16, box=(16, 0, 48, 16))
    np.testing.assert_allclose(halved[4, 2:-2, 0], (16.5 + 2 * np.arange(2, 14)) / 64, atol=1e-3)
