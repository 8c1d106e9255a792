"""Image files: every mode that they have, and what is refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from helios_jax.media import images
from helios_jax.media.images import image_pixels


def png(width: int, height: int, data: bytes) -> bytes:
    """An RGB PNG that claims this size, whatever its data is."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def over_white(colour: np.ndarray, alpha: float) -> np.ndarray:
    return alpha * colour + (1 - alpha) * 255


@pytest.mark.parametrize("alpha", [0, 64, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "P", "PA"])
def test_transparent_pictures_are_composited_on_white(mode, alpha):
    colour = np.array([200, 40, 90] if mode in ("RGBA", "RGBa", "P", "PA") else [120, 120, 120])
    image = Image.new("RGBA", (4, 4), (*colour.tolist(), alpha))
    if mode == "RGBa":
        image = image.convert("RGBa")
    elif mode in ("LA", "La"):
        image = Image.new("LA", (4, 4), (120, alpha))
        image = image.convert("La") if mode == "La" else image
    elif mode in ("P", "PA"):
        image = Image.new(mode, (4, 4))
        image.putpalette(colour.tolist() + [0] * 765)
        image.putdata([0] * 16) if mode == "P" else image.putalpha(alpha)
        image.info["transparency"] = bytes([alpha]) if mode == "P" else None
        if mode == "PA":
            del image.info["transparency"]
    wanted = over_white(colour, alpha / 255)
    got = image_pixels(image)
    assert got.shape == (4, 4, 3)
    # Premultiplied colours are rounded once more, by up to half a level over alpha.
    np.testing.assert_allclose(got, np.broadcast_to(wanted, got.shape), atol=3 if mode in ("La", "RGBa") else 1)


def test_a_transparent_colour_of_a_png(tmp_path):
    pixels = np.array([[[10, 20, 30], [200, 100, 50]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png", transparency=(10, 20, 30))
    np.testing.assert_array_equal(image_pixels(tmp_path / "image.png"), [[[255, 255, 255], [200, 100, 50]]])


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "LAB", "P"])
def test_other_modes(mode, tmp_path):
    ramp = np.broadcast_to(np.arange(0, 256, 17, dtype=np.uint8)[:, None, None], (16, 16, 3))
    got = image_pixels(
        Image.fromarray(np.ascontiguousarray(ramp)).convert(mode)
        if mode != "LAB"
        else Image.new("LAB", (16, 16), (128, 0, 0))
    )
    assert (got.shape, got.dtype) == ((16, 16, 3), np.uint8)
    if mode in ("L", "CMYK", "YCbCr", "HSV"):
        np.testing.assert_allclose(got.astype(int), ramp, atol=2)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    np.testing.assert_allclose(image_pixels(tmp_path / "red.jpg")[8, 8].astype(int), [255, 0, 0], atol=6)


def test_sixteen_bits(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(image_pixels(tmp_path / "grey.png"), levels[..., None].repeat(3, -1))
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=f"mode '{mode}' has more than 8 bits per channel; scale"):
            image_pixels(Image.new(mode, (4, 4)))


def test_animations_give_their_first_picture(tmp_path):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    for name in ("a.gif", "a.png", "a.webp"):
        first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
        with pytest.warns(UserWarning, match=rf"{name} is animated; only its first picture is used"):
            pixels = image_pixels(tmp_path / name)
        np.testing.assert_array_equal(pixels[4, 4], [255, 0, 0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bomb.png", png(60_000, 60_000, b""), "too large"),
        ("big.png", png(12_000, 12_000, b""), "too large: 12000 x 12000"),
        ("empty.png", b"", "it is not PNG, JPEG"),
        ("text.jpg", b"not a picture", "it is not PNG, JPEG"),
        ("zero.png", png(0, 16, b""), "cannot read the image"),
        ("short.png", png(16, 16, b"\0" * 20), "cannot read the image"),
        (
            "photo.heic",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
            "it is not PNG, JPEG.*save it as PNG or JPEG",
        ),
        ("vector.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is not PNG, JPEG"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "it is not PNG, JPEG"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        image_pixels(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_cut_off_files(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"cannot read the image .*cut\.{suffix}"):
        image_pixels(tmp_path / f"cut.{suffix}")


def test_large_photos_are_read_without_a_warning(tmp_path, monkeypatch):
    """Pillow warns from 89 million pixels on."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (12, 12)).save(tmp_path / "image.png")
    assert image_pixels(tmp_path / "image.png").shape == (12, 12, 3)
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 143)
    with pytest.raises(ValueError, match="too large: 12 x 12; at most 143 pixels"):
        image_pixels(tmp_path / "image.png")


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        image_pixels(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.png does not exist"):
        image_pixels(tmp_path / "nothing.png")
