"""Colours of decoded video, against the closed form of ITU-T H.273, and the choice of the stream."""

import pathlib
from fractions import Fraction

import av
import numpy as np
import pytest
from films import numbered, read_number, write_film

from helios_jax.media.decoding import read_frames
from helios_jax.media.files import ClipError
from helios_jax.media.reading import load_ends
from helios_jax.media.timeline import read_timeline

HEIGHT, WIDTH = 16, 64

# Kr and Kb of H.273, table 4.
MATRICES = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114), "bt2020nc": (0.2627, 0.0593)}


def ycbcr(rgb: np.ndarray, matrix: str, bits: int, full: bool) -> np.ndarray:
    """Equations 23 to 40 of H.273: R'G'B' in [0, 1] to integers Y', Cb, Cr."""
    red, blue = MATRICES[matrix]
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    differences = [(rgb[..., 2] - luma) / (2 * (1 - blue)), (rgb[..., 0] - luma) / (2 * (1 - red))]
    scale, half = (
        (((1 << bits) - 1, (1 << bits) - 1), 1 << bits - 1)
        if full
        else (
            (219 << bits - 8, 224 << bits - 8),
            1 << bits - 1,
        )
    )
    offset = 0 if full else 16 << bits - 8
    return np.rint([luma * scale[0] + offset, *(value * scale[1] + half for value in differences)]).astype(int)


def write_bars(path: pathlib.Path, planes: np.ndarray, pixel_format: str, **tags: str) -> pathlib.Path:
    """Vertical bars of the given Y', Cb, Cr [3, bars], stored without loss by FFV1."""
    frame = av.VideoFrame(WIDTH, HEIGHT, pixel_format)
    dtype = np.uint16 if "10" in pixel_format else np.uint8
    for plane, values in zip(frame.planes, planes, strict=True):
        bars = values.astype(dtype).repeat(plane.width // len(values))
        row = np.zeros(plane.line_size, np.uint8)
        row[: bars.nbytes] = bars.view(np.uint8)
        plane.update(np.tile(row, plane.height).tobytes())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24, options=tags)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pixel_format", ["yuv444p", "yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_matrix_range_and_depth(tmp_path, matrix, pixel_format, full):
    rgb = np.random.default_rng(1).uniform(0.1, 0.9, (4, 3))
    planes = ycbcr(rgb, matrix, 10 if "10" in pixel_format else 8, full)
    tags = {"colorspace": matrix, "color_range": "pc" if full else "tv"}
    (frame,) = read_frames(write_bars(tmp_path / "bars.mkv", planes, pixel_format, **tags))
    # Half a level of rounding in each of three planes, weighted by up to 2.2, and one in RGB.
    np.testing.assert_allclose(frame[HEIGHT // 2, WIDTH // 8 :: WIDTH // 4], 255 * rgb, atol=2.3)


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_named(tmp_path, transfer, name):
    tags = {"colorspace": "bt2020nc", "color_trc": transfer, "color_primaries": "bt2020"}
    path = write_bars(tmp_path / "hdr.mkv", np.full((3, 4), 512), "yuv420p10le", **tags)
    with pytest.warns(UserWarning, match=rf"hdr\.mkv is stored for HDR screens \({name}\)"):
        next(read_frames(path))


def add(container, codec: str, size: tuple[int, int], pixels: np.ndarray, disposition: str = "") -> list:
    """Adds a stream and returns its packets."""
    stream = container.add_stream(codec, rate=24)
    stream.height, stream.width = size
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    if disposition:
        stream.disposition = av.stream.Disposition[disposition]
    frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24") for image in pixels]
    return [packet for frame in [*frames, None] for packet in stream.encode(frame)]


def write_streams(path: pathlib.Path, *streams: tuple[str, np.ndarray, str]) -> pathlib.Path:
    with av.open(str(path), "w") as container:
        packets = [add(container, codec, pixels.shape[1:3], pixels, kind) for codec, pixels, kind in streams]
        for part in packets:
            container.mux(part)
    return path


COVER = np.full((1, 64, 64, 3), 200, np.uint8)


def test_cover_pictures_are_not_videos(tmp_path):
    path = write_streams(tmp_path / "song.mp4", ("mjpeg", COVER, "attached_pic"), ("libx264", numbered(40), "default"))
    assert [read_number(frame) for frame in read_frames(path)] == list(range(40))
    assert read_timeline(path).num_frames == 40
    only = write_streams(tmp_path / "cover.mp4", ("mjpeg", COVER, "attached_pic"))
    with pytest.raises(ClipError, match=r"cover\.mp4 has only a cover picture; give a file with a video"):
        next(read_frames(only))


def test_the_default_stream_is_read(tmp_path):
    small, large = numbered(20), np.zeros((20, 64, 96, 3), np.uint8)
    path = write_streams(tmp_path / "a.mkv", ("libx264", large, "forced"), ("libx264", small, "default"))
    assert [read_number(frame) for frame in read_frames(path)] == list(range(20))


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_cut_off_files_are_noticed_in_every_container(tmp_path, name, codec):
    path = write_film(tmp_path / name, numbered(60), codec=codec, g="10")
    assert len(list(read_frames(path))) == 60
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(ClipError, match=r"damaged or cut off: \d+ frames could be decoded"):
        list(read_frames(path))
    with pytest.raises(ClipError, match="damaged or cut off"):
        load_ends(path, 16, 32, last=5)


@pytest.mark.parametrize("rate", [30, 60, Fraction(25, 2), Fraction(30000, 1001)])
def test_ends_of_resampled_clips_are_those_of_all_frames(tmp_path, rate):
    """What seeking finds is what resampling the whole clip gives: frame 0 and the last ones, at 24 per second."""
    times = [Fraction(k) / rate for k in range(200)]
    path = write_film(tmp_path / "film.mp4", numbered(200), times=times, g="20")
    whole = list(read_frames(path, fps=24))
    numbers = [read_number(frame) for frame in whole]
    # The nearest in time; of two that are equally near, min takes the earlier one.
    wanted = [min(range(200), key=lambda n: abs(times[n] - Fraction(k, 24))) for k in range(len(whole))]
    assert numbers == wanted
    assert abs(len(whole) - 200 * 24 / rate) <= 1
    ends = load_ends(path, 16, 32, last=33, fps=24)
    assert len(ends) == len(whole)
    np.testing.assert_array_equal(ends[:1], whole[:1])
    np.testing.assert_array_equal(ends[len(whole) - 33 :], whole[-33:])
    assert len(load_ends(path, 16, 32, last=33)) == 200


def test_rates_next_to_24_are_kept(tmp_path):
    """NTSC film has 23.976 frames per second; in a minute, resampling would repeat one."""
    path = write_film(tmp_path / "a.mp4", numbered(240), times=[Fraction(k * 1001, 24000) for k in range(240)])
    assert [read_number(frame) for frame in read_frames(path, fps=24)] == list(range(240))


def test_times_that_make_no_sense_are_refused(tmp_path):
    path = write_film(tmp_path / "a.mkv", numbered(3), times=[Fraction(0), Fraction(1), Fraction(30_000)])
    with pytest.raises(ClipError, match=r"its 3 frames are spread over 30000 seconds"):
        list(read_frames(path, fps=24))
