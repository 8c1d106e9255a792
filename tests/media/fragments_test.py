"""Fragments: any chunks in order are a video, the init segment never changes, and a cut costs the last frame only."""

import io
import pathlib
import struct

import av
import numpy as np
import pytest

from helios_jax.media.fragments import ChunkEncoder, codec_string, copy_packets

HEIGHT, WIDTH, SIZES = 64, 96, (5, 9, 1, 7)


def noisy_clip(frames: int) -> np.ndarray:
    """A moving pattern with noise, so that rate factors matter, uint8 [F, H, W, 3]."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    waves = np.stack([np.sin((x + 2 * t) / 20), np.cos((y - t) / 25), np.sin((x + y + 3 * t) / 30)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 6, waves.shape)
    return np.clip(128 + 80 * waves + noise, 0, 255).round().astype(np.uint8)


def encoded(encoders: list[ChunkEncoder]) -> tuple[np.ndarray, list[list[bytes]]]:
    """A clip in chunks of ``SIZES``, each by the next encoder: the clip, and the segments of every chunk."""
    clip, starts = noisy_clip(sum(SIZES)), np.cumsum((0, *SIZES))
    return clip, [
        list(encoder.encode(clip[start : start + size], int(start)))
        for encoder, start, size in zip(encoders, starts, SIZES, strict=False)
    ]


def decoded(data: bytes) -> tuple[np.ndarray, list[float]]:
    """The frames of an mp4, and their times in frames."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
    pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return pixels, [float(frame.pts * frame.time_base * 24) for frame in frames]


def boxes(data: bytes) -> list[tuple[str, bytes]]:
    found, start = [], 0
    while start < len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        found.append((kind.decode(), data[start + 8 : start + size]))
        start += size
    return found


def nal_types(fragment: bytes) -> list[int]:
    """Types of the NAL units of a fragment (ITU-T H.264, table 7-1), which are stored with their lengths."""
    data, found, start = dict(boxes(fragment))["mdat"], [], 0
    while start < len(data):
        (size,) = struct.unpack_from(">I", data, start)
        found.append(data[start + 4] & 31)
        start += 4 + size
    return found


@pytest.mark.parametrize(("codec", "name"), [("h264", "avc1.64000a"), ("vp9", "vp09.00.10.08")])
def test_any_suffix_of_the_chunks_is_a_video(codec, name):
    qualities = ["normal", "low", "high", "normal"]
    clip, chunks = encoded([ChunkEncoder.live(codec, quality=quality) for quality in qualities])
    init, starts = chunks[0][0], np.cumsum((0, *SIZES))
    assert [kind for kind, _ in boxes(init)] == ["ftyp", "moov"]
    assert codec_string(init) == name
    for size, (_, *fragments) in zip(SIZES, chunks, strict=True):
        assert [[kind for kind, _ in boxes(fragment)] for fragment in fragments] == [["moof", "mdat"]] * size
    for first in range(len(SIZES)):
        media = b"".join(fragment for chunk in chunks[first:] for fragment in chunk[1:])
        frames, times = decoded(init + media)
        assert times == list(range(starts[first], sum(SIZES)))
        assert np.abs(frames.astype(int) - clip[starts[first] :]).mean() < 8
    # A chunk in the middle can be missing as well.
    media = b"".join(fragment for chunk in (chunks[0], chunks[3]) for fragment in chunk[1:])
    assert decoded(init + media)[1] == [*range(5), *range(15, 22)]


def test_parameter_sets_are_those_of_every_quality_and_chunks_begin_with_idr_frames():
    """In one init segment for all: a viewer who joins, or whose quality changes, needs no other."""
    inits = []
    for quality in ("low", "normal", "high"):
        _, chunks = encoded([ChunkEncoder.live(quality=quality)] * len(SIZES))
        inits += [chunk[0] for chunk in chunks]
        for _, first, *later in chunks:
            assert [kind for kind in nal_types(first) if kind != 6] == [5]  # 5: IDR; 6: SEI, x264's settings
            assert all(nal_types(fragment) == [1] for fragment in later)  # 1: a slice of another frame
    assert len(set(inits)) == 1
    # Without x264's option the parameter sets differ, so that this test can fail.
    plain = {**ChunkEncoder.live().options, "x264-params": "stitchable=0"}
    differing = {
        next(ChunkEncoder(codec="libx264", options=plain | {"crf": crf}).encode(noisy_clip(2), 0))
        for crf in ("16", "28")
    }
    assert len(differing) == 2


def test_fragments_leave_while_later_frames_are_to_come():
    """The frames from the third on can still be changed when the first fragment is there."""
    clip = noisy_clip(12)
    stream = ChunkEncoder.live().encode(clip, 0)
    first = next(stream) + next(stream)
    clip[2:] = 16
    frames, _ = decoded(first + b"".join(stream))
    assert frames[0].std() > 20
    assert [int(frame.max()) < 40 for frame in frames[2:]] == [True] * 10


def test_cut_file_keeps_all_frames_but_the_last(tmp_path):
    """Wherever in its last fragment a file is cut, it becomes a seekable mp4 of the others."""
    _, chunks = encoded([ChunkEncoder.live()] * len(SIZES))
    data = chunks[0][0] + b"".join(fragment for chunk in chunks for fragment in chunk[1:])
    last, source, target = chunks[-1][-1], tmp_path / "cut.mp4", tmp_path / "seekable.mp4"
    # FFmpeg refuses files that end within the fields of a ``moof``, after 44 and 98 bytes here.
    for cut in (*range(0, len(last), 67), 44, 98, len(last) - 1):
        source.write_bytes(data[: len(data) - len(last) + cut])
        copy_packets(source, target)
        assert decoded(target.read_bytes())[1] == list(range(sum(SIZES) - 1))
    source.write_bytes(data)
    copy_packets(source, target)
    whole = target.read_bytes()
    kinds = [kind for kind, _ in boxes(whole)]
    assert kinds.index("moov") < kinds.index("mdat")
    assert "moof" not in kinds
    np.testing.assert_array_equal(decoded(whole)[0], decoded(data)[0])


def test_seek_in_the_seekable_copy(tmp_path):
    _, chunks = encoded([ChunkEncoder.live()] * len(SIZES))
    source, target = tmp_path / "tape.mp4", tmp_path / "seekable.mp4"
    source.write_bytes(chunks[0][0] + b"".join(fragment for chunk in chunks for fragment in chunk[1:]))
    copy_packets(source, target)
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        for wanted, key in ((3, 0), (13, 5), (20, 15)):  # the first frame of its chunk
            container.seek(round(wanted / 24 / stream.time_base), stream=stream)
            frame = next(container.decode(stream))
            assert round(float(frame.pts * stream.time_base * 24)) == key


def test_refusals(monkeypatch):
    for arguments in ({"codec": "av1"}, {"quality": "best"}):
        with pytest.raises(ValueError, match="must be h264 or vp9, and low, normal or high"):
            ChunkEncoder.live(**arguments)
    with pytest.raises(ValueError, match="even sides, got height x width 63 x 96"):
        ChunkEncoder.live().encode(noisy_clip(1)[:, :63], 0)
    with pytest.raises(ValueError, match="must be uint8"):
        ChunkEncoder.live().encode(noisy_clip(1) / 255, 0)
    with pytest.raises(ValueError, match="not the init segment"):
        codec_string(pathlib.Path(__file__).read_bytes())
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libvpx-vp9"})
    with pytest.raises(ValueError, match="this build of PyAV has no libvpx-vp9"):
        ChunkEncoder.live("vp9")
