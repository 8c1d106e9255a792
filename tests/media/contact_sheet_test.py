"""The contact sheet: which frames it shows, where, and that its size is bounded."""

import shutil

import numpy as np
import pytest
from PIL import Image

from helios_jax.media.contact_sheet import ContactSheet

TILE, LABEL, GAP = (16, 32), 14, 2


def chunk(index: int, frames: int = 5) -> np.ndarray:
    """Frames of one colour each: red counts chunks, green counts frames."""
    pixels = np.zeros((frames, 32, 64, 3), np.uint8)
    pixels[..., 0] = index
    pixels[..., 1] = 10 * np.arange(frames)[:, None, None]
    return pixels


def tiles(path) -> np.ndarray:
    """The picture's tiles by position, [rows, columns, height, width, 3]; labels are asserted to be present."""
    sheet = np.asarray(Image.open(path)).astype(int)
    step_y, step_x = TILE[0] + LABEL + GAP, TILE[1] + GAP
    rows, columns = (sheet.shape[0] + GAP) // step_y, (sheet.shape[1] + GAP) // step_x
    assert sheet.shape == (rows * step_y - GAP, columns * step_x - GAP, 3)
    corners = [(y * step_y, x * step_x) for y in range(rows) for x in range(columns)]
    for y, x in corners:
        assert sheet[y + TILE[0] : y + TILE[0] + LABEL, x : x + TILE[1]].max() > 128
    found = np.stack([sheet[y : y + TILE[0], x : x + TILE[1]] for y, x in corners])
    return found.reshape(rows, columns, *TILE, 3)


def write(path, chunks: int, **options) -> np.ndarray:
    with ContactSheet(path, tile_width=TILE[1], **options) as sheet:
        for index in range(chunks):
            sheet.write(chunk(index))
    assert sheet.num_frames == 5 * chunks
    return tiles(path)


def test_first_middle_and_last_frame_of_each_chunk(tmp_path):
    found = write(tmp_path / "folder" / "sheet.png", 4)
    expected = np.zeros((4, 3, *TILE, 3), int)
    expected[..., 0] = np.arange(4)[:, None, None, None]
    expected[..., 1] = np.array([0, 20, 40])[:, None, None]
    np.testing.assert_array_equal(found, expected)


def test_labels_name_frame_and_time(tmp_path):
    """Equal frames at different times differ in their labels only."""
    with ContactSheet(tmp_path / "sheet.png", tile_width=96, columns=2) as sheet:
        sheet.write(np.zeros((24, 32, 64, 3), np.uint8))
    found = np.asarray(Image.open(sheet.path)).astype(int)
    labels = found[:, :96], found[:, 98:]
    assert all((label[:48] == 0).all() and label[48:].max() > 128 for label in labels)
    assert (labels[0] != labels[1]).any()


def test_columns(tmp_path):
    found = write(tmp_path / "sheet.png", 1, columns=5)
    assert found[0, :, 0, 0, 1].tolist() == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("chunks", "rows"),
    [
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, [0, 2, 4, 6, 8]),
        (10, [0, 2, 4, 6, 8, 9]),
        (200, [0, 32, 64, 96, 128, 160, 192, 199]),
    ],
)
def test_rows_are_thinned_out(tmp_path, chunks, rows):
    found = write(tmp_path / "sheet.png", chunks, max_rows=8)
    assert found[:, 0, 0, 0, 0].tolist() == rows


def test_a_sheet_that_cannot_be_written_is_a_warning(tmp_path):
    sheet = ContactSheet(tmp_path / "folder" / "sheet.png")
    sheet.write(chunk(0))
    shutil.rmtree(tmp_path / "folder")
    with pytest.warns(UserWarning, match=r"the contact sheet .*sheet\.png could not be written: .* was moved, removed"):
        sheet.close()


def test_our_sheets_are_replaced(tmp_path):
    for chunks in (1, 2):
        assert len(write(tmp_path / "sheet.png", chunks, overwrite=True)) == chunks
    assert list(tmp_path.iterdir()) == [tmp_path / "sheet.png"]


def interrupted(path):
    with ContactSheet(path, tile_width=TILE[1]) as sheet:
        sheet.write(chunk(0))
        raise KeyboardInterrupt


def test_interruption_still_writes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "sheet.png")
    assert tiles(tmp_path / "sheet.png").shape[:2] == (1, 3)


def test_refusals(tmp_path):
    with ContactSheet(tmp_path / "sheet.png") as sheet, pytest.raises(ValueError, match="must be uint8"):
        sheet.write(chunk(0) / 255)
    assert not list(tmp_path.iterdir())
    (tmp_path / "sheet.png").write_text("precious")
    with pytest.raises(FileExistsError, match=r"sheet\.png exists"):
        ContactSheet(tmp_path / "sheet.png")
    with pytest.raises(FileExistsError, match="was not written by helios_jax"):
        ContactSheet(tmp_path / "sheet.png", overwrite=True)
    assert (tmp_path / "sheet.png").read_text() == "precious"
    with pytest.raises(ValueError, match=r"must end in \.png"):
        ContactSheet(tmp_path / "sheet.jpg")
    with pytest.raises(ValueError, match="columns=1"):
        ContactSheet(tmp_path / "other.png", columns=1)


@pytest.mark.parametrize(("width", "tile"), [(64, 192), (80, 160), (192, 192), (320, 192)])
def test_small_frames_are_enlarged_without_blur(tmp_path, width, tile):
    """By a whole factor: every pixel becomes a square of its colour. Larger ones are reduced."""
    frames = np.random.default_rng(0).integers(0, 256, (3, width, width, 3), np.uint8)
    with ContactSheet(tmp_path / "sheet.png") as sheet:
        sheet.write(frames)
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert picture.shape == (tile + LABEL, 3 * (tile + GAP) - GAP, 3)
    if tile % width == 0:
        factor = tile // width
        np.testing.assert_array_equal(picture[:tile, :tile], frames[0].repeat(factor, 0).repeat(factor, 1))
