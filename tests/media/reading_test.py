"""Reading images and videos: values, sizes, orientation, precision and refusals."""

import io
import struct
import subprocess
import sys
import wave

import av
import numpy as np
import pytest
from PIL import Image

from helios_jax.media import decoding, pixels, reading


def smooth_clip(frames: int, height: int, width: int) -> np.ndarray:
    """A moving pattern that 4:2:0 video keeps well, uint8 [F, H, W, 3]."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin((x + 2 * t) / 20), np.cos((y - t) / 25), np.sin((x + y + 3 * t) / 30)]
    return np.round(128 + 80 * np.stack(waves, axis=-1)).astype(np.uint8)


def encode(path, clip: np.ndarray, **options: str) -> bytes:
    """Writes ``clip`` as H.264 with the index in front and returns the file's bytes."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "8", **options})
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in clip:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", interpolation=decoding.SWSCALE_FLAGS)))
        container.mux(stream.encode(None))
    return path.read_bytes()


def lanczos(size_in: int, size_out: int) -> np.ndarray:
    """The Lanczos-3 resampling matrix [out, in], widened by the scale when shrinking, renormalised at borders."""
    scale = size_in / size_out
    centre = (np.arange(size_out)[:, None] + 0.5) * scale
    x = (np.arange(size_in)[None] + 0.5 - centre) / max(scale, 1.0)
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def test_uint8_maps_to_signed_floats():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    image = reading.load_image(ramp, 16, 16)
    assert (image.dtype, image.min(), image.max()) == (np.float32, -1, 1)
    np.testing.assert_allclose(image[..., 0].ravel(), np.linspace(-1, 1, 256), atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_keep_their_precision(dtype):
    values = np.random.default_rng(1).random((1, 8, 8, 3)).astype(dtype)
    np.testing.assert_allclose(reading.load_image(values[0], 8, 8), 2 * values[0] - 1, atol=1.3e-7)
    frames = reading.load_video(values, 8, 8)
    assert frames.dtype == np.float32
    np.testing.assert_allclose(pixels.to_signed(frames), 2 * values - 1, atol=1.3e-7)


@pytest.mark.parametrize("size", [(12, 16), (48, 100)])
def test_resize_is_lanczos(noise, size):
    rows, columns = lanczos(24, size[0]), lanczos(40, size[1])
    image = 80 + noise // 3  # far from 0 and 255: PIL also clips 8-bit images between its two passes
    expected = 2 * np.einsum("yh,xw,hwc->yxc", rows, columns, image / 255) - 1
    np.testing.assert_allclose(reading.load_image(image / 255, *size), expected, atol=2e-5)
    np.testing.assert_allclose(reading.load_image(image, *size), expected, atol=2 * 1.5 / 255)  # rounds twice


def test_resized_floats_stay_in_range(noise):
    image = reading.load_image((noise > 127).astype(np.float32), 50, 90)
    assert (image.min(), image.max()) == (-1, 1)


def test_path_pil_and_array_agree(tmp_path, noise):
    Image.fromarray(noise).save(tmp_path / "image.png")
    expected = reading.load_image(noise, 16, 32)
    for image in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(noise)):
        np.testing.assert_array_equal(reading.load_image(image, 16, 32), expected)


def test_other_pil_modes_become_rgb(noise):
    expected = reading.load_image(noise, 24, 40)
    grey = reading.load_image(Image.fromarray(noise[..., 0]), 24, 40)
    np.testing.assert_array_equal(grey, expected[..., :1].repeat(3, axis=-1))
    with pytest.raises(ValueError, match="more than 8 bits"):
        reading.load_image(Image.fromarray(noise[..., 0].astype(np.float32)), 24, 40)


def test_exif_orientation_is_applied(tmp_path, noise):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    Image.fromarray(noise).save(tmp_path / "turned.png", exif=exif)
    expected = reading.load_image(np.rot90(noise, -1), 40, 24)
    np.testing.assert_array_equal(reading.load_image(tmp_path / "turned.png", 40, 24), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"shape \[8, 8\], need \[H, W, 3\]"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \[8, 8, 4\]"),
        (np.zeros((3, 8, 8), np.uint8), "channels last"),
        (np.zeros((1, 8, 8, 3), np.uint8), "without a batch axis"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \[0, 8, 3\]"),
        (np.zeros((8, 8, 3), np.int32), "int32, need uint8"),
        (np.full((8, 8, 3), np.nan, np.float32), r"lie in \[0, 1\], got nan"),
        (np.full((8, 8, 3), -0.5, np.float32), r"got -0.5 .. -0.5 in an array of shape \[8, 8, 3\]"),
        (np.full((8, 8, 3), 255.0, np.float32), "as uint8"),
    ],
)
def test_bad_image_arrays_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        reading.load_image(array, 8, 8)


def test_bad_image_files_are_refused(tmp_path, noise):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        reading.load_image(tmp_path / "nowhere.png", 8, 8)
    with pytest.raises(ValueError, match="not a file"):
        reading.load_image(tmp_path, 8, 8)
    (tmp_path / "text.png").write_text("no image")
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "PNG")
    (tmp_path / "half.png").write_bytes(png.getvalue()[: len(png.getvalue()) // 2])
    for name in ("text.png", "half.png"):
        with pytest.raises(ValueError, match=f"cannot read the image .*{name}"):
            reading.load_image(tmp_path / name, 8, 8)


def test_video_file(tmp_path):
    clip = smooth_clip(20, 64, 96)
    encode(tmp_path / "clip.mp4", clip)
    frames = reading.load_video(tmp_path / "clip.mp4", 64, 96)
    assert (frames.shape, frames.dtype) == (clip.shape, np.uint8)
    error = frames.astype(np.int32) - clip
    assert np.abs(error).mean() < 1.0  # neighbouring frames differ by 8 on average
    np.testing.assert_allclose(error.mean(axis=(0, 1, 2)), 0, atol=0.4)  # swscale's default: -1.3
    np.testing.assert_array_equal(reading.load_video(str(tmp_path / "clip.mp4"), 64, 96, max_frames=7), frames[:7])
    np.testing.assert_array_equal(reading.load_video(tmp_path / "clip.mp4", 32, 80), reading.load_video(frames, 32, 80))


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],  # as phones write them
    ids=["clockwise", "half", "counterclockwise"],
)
def test_stored_rotation_is_applied(tmp_path, matrix, turns):
    data = encode(tmp_path / "clip.mp4", smooth_clip(3, 64, 96))
    upright = reading.load_video(tmp_path / "clip.mp4", 64, 96)
    a, b, c, d = (n << 16 for n in matrix)
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    start = data.index(identity, data.index(b"tkhd"))
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data[:start] + turned + data[start + 36 :])
    expected = np.rot90(upright, turns, axes=(1, 2))
    np.testing.assert_array_equal(reading.load_video(tmp_path / "turned.mp4", *expected.shape[1:3]), expected)


def test_arrays_and_lists(noise):
    clip = np.stack([noise, noise[::-1], noise[:, ::-1]])
    np.testing.assert_array_equal(reading.load_video(clip, 24, 40), clip)
    assert len(reading.load_video(clip, 24, 40, max_frames=2)) == 2
    small = reading.load_video(clip, 12, 16)
    assert small.dtype == np.uint8
    for k, frame in enumerate(clip):
        np.testing.assert_array_equal(pixels.to_signed(small)[k], reading.load_image(frame, 12, 16))
    for video in ([Image.fromarray(frame) for frame in clip], list(clip)):
        np.testing.assert_array_equal(reading.load_video(video, 12, 16), small)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((1, 2, 8, 8, 3), np.uint8), r"shape \[1, 2, 8, 8, 3\], need \[F, H, W, 3\].*one video"),
        (np.zeros((8, 8, 3), np.uint8), r"need \[F, H, W, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"shape \[0, 8, 8, 3\]"),
        ([], "list of 0 images"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.float32)], "not both"),
    ],
)
def test_bad_videos_are_refused(video, message):
    with pytest.raises(ValueError, match=message):
        reading.load_video(video, 8, 8)


def test_bad_video_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        reading.load_video(tmp_path / "nowhere.mp4", 8, 8)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"cannot read the video .*text\.mp4: Invalid data"):
        reading.load_video(tmp_path / "text.mp4", 8, 8)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    with pytest.raises(ValueError, match=r"sound\.wav has no video stream"):
        reading.load_video(tmp_path / "sound.wav", 8, 8)
    with pytest.raises(ValueError, match="max_frames must be at least 1, got 0"):
        reading.load_video(np.zeros((1, 8, 8, 3), np.uint8), 8, 8, max_frames=0)


def test_cut_off_video_names_its_intact_frames(tmp_path):
    data = encode(tmp_path / "clip.mp4", smooth_clip(30, 64, 96))
    whole = reading.load_video(tmp_path / "clip.mp4", 64, 96)
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) * 3 // 4])
    with av.open(str(path)) as container:
        intact = sum(not packet.is_corrupt for packet in container.demux(video=0) if packet.size)
    assert 10 < intact < 30
    message = rf"cut\.mp4 is damaged or cut off: {intact} frames could be decoded .*max_frames={intact}"
    with pytest.raises(ValueError, match=message):
        reading.load_video(path, 64, 96)
    frames = reading.load_video(path, 64, 96, max_frames=intact)
    assert len(frames) == intact
    np.testing.assert_array_equal(frames[:10], whole[:10])  # the last few may lack frames they refer to


def test_import_loads_no_media_library():
    modules = "helios_jax.media.reading, helios_jax.media.video_writer, helios_jax.media.contact_sheet"
    code = f"import sys, {modules}; print({{'av', 'PIL'}} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"
