"""All eight orientations of videos and of images, by the definition of the display matrix and of EXIF."""

import itertools
import pathlib

import numpy as np
import pytest
from films import turn, write_lossless
from PIL import Image

from helios_jax.media.decoding import read_frames
from helios_jax.media.images import image_pixels

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
"""Red, green; blue, white."""

MATRICES = [
    (a, b, c, d)
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4)
    if abs(a) + abs(b) == abs(c) + abs(d) == 1 and abs(a * d - b * c) == 1
]


def shown(stored: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Moves every pixel to x' = a x + c y, y' = b x + d y, shifted so that the smallest place is 0."""
    a, b, c, d = matrix
    places = {(x, y): (a * x + c * y, b * x + d * y) for y in range(len(stored)) for x in range(len(stored[0]))}
    left, top = (min(place[axis] for place in places.values()) for axis in (0, 1))
    rows, columns = (max(p[1] for p in places.values()) - top + 1, max(p[0] for p in places.values()) - left + 1)
    screen = np.zeros((rows, columns, 3), np.uint8)
    for (x, y), (x2, y2) in places.items():
        screen[y2 - top, x2 - left] = stored[y, x]
    return screen


def test_there_are_eight():
    assert len(MATRICES) == 8


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> pathlib.Path:
    """2 x 2 colours in a frame of 16 x 32 pixels, without loss."""
    frame = COLOURS.repeat(8, 0).repeat(16, 1)
    return write_lossless(tmp_path_factory.mktemp("film") / "film.mp4", np.stack([frame] * 2))


@pytest.mark.parametrize("matrix", MATRICES)
def test_display_matrices(film, tmp_path, matrix):
    (tmp_path / "turned.mp4").write_bytes(turn(film.read_bytes(), matrix))
    (stored, _), (frame, _) = read_frames(film), read_frames(tmp_path / "turned.mp4")
    assert frame.shape[:2] == ((16, 32) if matrix[0] else (32, 16))
    np.testing.assert_array_equal(frame, shown(stored, matrix))


def test_scaled_matrices_turn_alike(film, tmp_path):
    (tmp_path / "turned.mp4").write_bytes(turn(film.read_bytes(), (0, 2, -2, 0)))
    np.testing.assert_array_equal(
        next(read_frames(tmp_path / "turned.mp4")), shown(next(read_frames(film)), (0, 1, -1, 0))
    )


# Where EXIF (CIPA DC-008, 4.6.5) says that row 0 and column 0 of the stored picture are shown.
EXIF = {
    1: (1, 0, 0, 1),  # top, left
    2: (-1, 0, 0, 1),  # top, right
    3: (-1, 0, 0, -1),  # bottom, right
    4: (1, 0, 0, -1),  # bottom, left
    5: (0, 1, 1, 0),  # left, top
    6: (0, 1, -1, 0),  # right, top
    7: (0, -1, -1, 0),  # right, bottom
    8: (0, -1, 1, 0),  # left, bottom
}


@pytest.mark.parametrize("orientation", EXIF)
@pytest.mark.parametrize("grey", [False, True])
def test_exif_orientations(tmp_path, orientation, grey):
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20 if not grey else None
    exif = Image.Exif()
    exif[0x0112] = orientation
    if grey:  # 16 bits take another way
        pixels = np.array([[0, 85], [170, 255]], np.uint8)
        Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "image.png", exif=exif)
        pixels = pixels[..., None].repeat(3, -1)
    else:
        Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    wanted = shown(pixels, EXIF[orientation])
    np.testing.assert_array_equal(image_pixels(tmp_path / "image.png"), wanted)
    with Image.open(tmp_path / "image.png") as image:
        np.testing.assert_array_equal(image_pixels(image), wanted)
