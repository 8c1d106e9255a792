"""Writing videos: round trips, interruption at any point, and what is refused."""

import pathlib
import resource
import signal
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from helios_jax.media.pixels import enlargement
from helios_jax.media.reading import load_video
from helios_jax.media.video_writer import VideoWriter, make_seekable

HEIGHT, WIDTH = 64, 96


def smooth_clip(frames: int) -> np.ndarray:
    """A moving pattern whose neighbouring frames differ by about 8 levels, uint8 [F, H, W, 3]."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    waves = [np.sin((x + 2 * t) / 20), np.cos((y - t) / 25), np.sin((x + y + 3 * t) / 30)]
    return np.round(128 + 80 * np.stack(waves, axis=-1)).astype(np.uint8)


def mean_error(frames: np.ndarray, clip: np.ndarray) -> float:
    assert frames.shape == clip.shape
    return float(np.abs(frames.astype(np.int32) - clip).mean())


def top_level_boxes(path: pathlib.Path) -> list[str]:
    data, names, start = path.read_bytes(), [], 0
    while start < len(data):
        size, name = struct.unpack_from(">I4s", data, start)
        names.append(name.decode())
        start += size
    return names


def stream_facts(path: pathlib.Path) -> dict[str, object]:
    """What a player sees: codec, pixel format, rate, and the time of each decoded frame in frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = Fraction(str(stream.average_rate))
        times = [frame.pts * Fraction(str(stream.time_base)) * rate for frame in container.decode(stream)]
        return {"codec": stream.codec_context.name, "format": stream.pix_fmt, "rate": rate, "times": times}


@pytest.mark.parametrize("sizes", [(33, 33, 33), (1, 2, 5, 1, 33, 3)])
@pytest.mark.parametrize("seekable", [True, False])
def test_round_trip(tmp_path, sizes, seekable):
    clip = smooth_clip(sum(sizes))
    path = tmp_path / "new folder" / "clip.mp4"
    writer = VideoWriter(path)
    for chunk in np.split(clip, np.cumsum(sizes)[:-1]):
        writer.write(chunk)
    writer.close(seekable=seekable)
    assert writer.num_frames == len(clip)
    frames = load_video(path, HEIGHT, WIDTH)
    assert mean_error(frames, clip) < 2
    np.testing.assert_allclose((frames.astype(np.int32) - clip).mean(axis=(0, 1, 2)), 0, atol=0.4)
    expected = {"codec": "h264", "format": "yuv420p", "rate": 24, "times": list(range(len(clip)))}
    assert stream_facts(path) == expected
    boxes = top_level_boxes(path)
    if seekable:
        assert boxes.index("moov") < boxes.index("mdat")
        assert "moof" not in boxes
    else:
        assert boxes == ["ftyp", "uuid", "moov"] + ["moof", "mdat"] * boxes.count("moof")
    assert list(path.parent.iterdir()) == [path]


def test_fps_and_quality(tmp_path):
    clip, sizes = smooth_clip(10), {}
    for crf in (10, 40):
        with VideoWriter(tmp_path / f"{crf}.mp4", fps=29.97, crf=crf) as writer:
            writer.write(clip)
        sizes[crf] = writer.path.stat().st_size
        assert stream_facts(writer.path)["rate"] == Fraction(30000, 1001)
    assert sizes[40] < 0.7 * sizes[10]


def test_colours_are_tagged(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.write(smooth_clip(2))
    with av.open(str(writer.path)) as container:
        context = container.streams.video[0].codec_context
        # Code points of ITU-T H.273: BT.601 matrix, BT.709 primaries and transfer, limited range.
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert tags == (6, 1, 1, 1)


@pytest.mark.slow
def test_killed_process_leaves_every_written_frame(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
from video_writer_test import VideoWriter, smooth_clip
writer, clip = VideoWriter({str(tmp_path / "clip.mp4")!r}), smooth_clip(300)
for start in range(0, 300, 10):
    writer.write(clip[start:start + 10])
    print(start + 10, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    written = [int(process.stdout.readline()) for _ in range(3)][-1]
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    frames = load_video(tmp_path / "clip.mp4", HEIGHT, WIDTH, max_frames=written)
    assert mean_error(frames, smooth_clip(written)) < 2


def test_stopped_within_a_write(tmp_path):
    """Whatever part of the third write reached the disk, the first two are readable and can be finished."""
    clip, path = smooth_clip(60), tmp_path / "clip.mp4"
    writer, ends = VideoWriter(path), []
    for start in range(0, 60, 20):
        writer.write(clip[start : start + 20])
        ends.append(path.stat().st_size)
    data = path.read_bytes()
    for cut in np.linspace(ends[1], ends[2] - 1, 12).astype(int).tolist():
        path.write_bytes(data[:cut])
        assert mean_error(load_video(path, HEIGHT, WIDTH, max_frames=40), clip[:40]) < 2
        make_seekable(path)
        frames = load_video(path, HEIGHT, WIDTH)
        assert 40 <= len(frames) < 60
        assert mean_error(frames, clip[: len(frames)]) < 2


def interrupted(path, clip):
    with VideoWriter(path) as writer:
        if len(clip):
            writer.write(clip)
        raise KeyboardInterrupt


def test_exception_keeps_what_was_written(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "clip.mp4", smooth_clip(5))
    assert "moof" in top_level_boxes(tmp_path / "clip.mp4")
    assert len(load_video(tmp_path / "clip.mp4", HEIGHT, WIDTH)) == 5


def test_nothing_written_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "clip.mp4", smooth_clip(0))
    with VideoWriter(tmp_path / "clip.mp4"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", [0.01, 0.5, 0.95])
def test_no_room_for_the_copy_keeps_the_fragmented_file(tmp_path, part):
    """The system refuses to let any file grow beyond a part of the video's size, as on a full disk."""
    writer = VideoWriter(tmp_path / "clip.mp4")
    writer.write(smooth_clip(40))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    content = writer.path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(part * len(content)), limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"clip\.mp4 is complete but was left as a fragmented mp4.*File too large"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [writer.path]
    assert writer.path.read_bytes() == content
    make_seekable(writer.path)
    assert len(load_video(writer.path, HEIGHT, WIDTH)) == 40


def test_full_disk_in_a_write_loses_nothing(tmp_path):
    """What the failed write left is removed, and the same frames can be written again."""
    writer = VideoWriter(tmp_path / "clip.mp4")
    writer.write(smooth_clip(20))
    content, limits = writer.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 700, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*clip\.mp4"):
            writer.write(smooth_clip(40)[20:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert writer.path.read_bytes() == content
    writer.write(smooth_clip(40)[20:])
    writer.close()
    assert mean_error(load_video(writer.path, HEIGHT, WIDTH), smooth_clip(40)) < 2


def test_only_our_files_are_replaced(tmp_path):
    path = tmp_path / "clip.mp4"
    for overwrite in (False, True):
        path.write_text("precious")
        message = "was not written by helios_jax, so it is not replaced" if overwrite else r"exists.*overwrite=True"
        with pytest.raises(FileExistsError, match=message):
            VideoWriter(path, overwrite=overwrite)
        assert path.read_text() == "precious"
    path.unlink()
    for seekable in (True, False):
        with VideoWriter(path, overwrite=True) as writer:
            writer.write(smooth_clip(3 + seekable))
            writer.close(seekable=seekable)
        assert len(load_video(path, HEIGHT, WIDTH)) == 3 + seekable
    with pytest.raises(FileExistsError, match="exists"):
        VideoWriter(path)


def test_other_videos_are_not_made_seekable(tmp_path):
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(smooth_clip(1)[0])))
        container.mux(stream.encode(None))
    content = (tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(ValueError, match=r"clip\.mp4 was not written by helios_jax, so it is not changed"):
        make_seekable(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == content


@pytest.mark.parametrize("name", ["a:b.mp4", "http:x.mp4", "100%d.mp4", "-.mp4", "x" * 251 + ".mp4", "ü 'x'.MP4"])
def test_unusual_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with VideoWriter(name) as writer:
        writer.write(smooth_clip(3))
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    assert len(load_video(name, HEIGHT, WIDTH)) == 3


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.mp4, got .*clip\.webm"):
        VideoWriter(tmp_path / "clip.webm")
    for fps in (0, -24, float("nan"), float("inf"), 1e9, True, 1e-9):
        with pytest.raises(ValueError, match="fps="):
            VideoWriter(tmp_path / "clip.mp4", fps=fps)
    with pytest.raises(ValueError, match="crf=60"):
        VideoWriter(tmp_path / "clip.mp4", crf=60)
    writer = VideoWriter(tmp_path / "clip.mp4")
    for frames, message in (
        (smooth_clip(2)[None], r"shape \[1, 2, 64, 96, 3\], need \[F, H, W, 3\]"),
        (smooth_clip(2) / 255, "must be uint8, got float32"),
        (smooth_clip(2)[:, :63], "even sides, got height x width 63 x 96"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.write(frames)
    writer.write(smooth_clip(2))
    with pytest.raises(ValueError, match=r"one size: it has \(64, 96\), got \(32, 96\)"):
        writer.write(smooth_clip(2)[:, :32])
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(smooth_clip(2))


def test_without_x264(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    clip = smooth_clip(20)
    with pytest.warns(UserWarning, match="no libx264"):
        writer = VideoWriter(tmp_path / "clip.mp4")
    with writer:
        writer.write(clip[:10])
        writer.write(clip[10:])
    assert stream_facts(writer.path) == {
        "codec": "mpeg4",
        "format": "yuv420p",
        "rate": 24,
        "times": list(range(20)),
    }
    assert mean_error(load_video(writer.path, HEIGHT, WIDTH), clip) < 2


def test_enlarged_frames_have_squares_for_pixels(tmp_path):
    """Checked on grey noise, since colours have half the resolution in yuv420p."""
    small = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 1), np.uint8).repeat(3, axis=-1)
    with VideoWriter(tmp_path / "large.mp4", crf=1, enlarge=4) as video:
        video.write(small[:2])
        video.write(small[2:])
    found = load_video(tmp_path / "large.mp4", 64, 96)
    assert found.shape == (5, 64, 96, 3)
    assert mean_error(found, small.repeat(4, axis=1).repeat(4, axis=2)) < 2
    with pytest.raises(ValueError, match="enlarge=0 must be a whole number from 1 to 64"):
        VideoWriter(tmp_path / "none.mp4", enlarge=0)
    assert [enlargement(*size) for size in ((64, 64), (128, 96), (130, 64), (384, 640))] == [4, 2, 1, 1]
