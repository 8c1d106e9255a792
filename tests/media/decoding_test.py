"""The decoder: exact frames from anywhere in a film, at little cost and at any rate; damage is noticed."""

import itertools
import pathlib
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from films import numbered, read_number, turn, write_film, write_lossless

from helios_jax.media import decoding
from helios_jax.media.decoding import read_frames
from helios_jax.media.files import ClipError
from helios_jax.media.reading import load_ends, load_video
from helios_jax.media.timeline import read_timeline


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by one entry for every frame that is decoded."""
    counts: list[int] = []
    original = decoding._decode

    def counting(container, stream, **options):
        for frame in original(container, stream, **options):
            counts.append(1)
            yield frame

    monkeypatch.setattr(decoding, "_decode", counting)
    return counts


# Containers and codecs that store times and key frames in different ways.
FILMS = {
    "one-key-frame.mp4": {},
    "b-frames.mp4": {"g": "30", "bf": "3"},
    "open-groups.mp4": {"x264-params": "open-gop=1:keyint=24:bframes=3"},
    "key-frames-only.mp4": {"g": "1"},
    "b-frames.mkv": {"g": "30", "bf": "3"},
    "b-frames.ts": {"g": "30", "bf": "3"},
    "open-groups.ts": {"x264-params": "open-gop=1:keyint=24:bframes=3"},
    "no-key-frames.ts": {"x264-params": "intra-refresh=1:keyint=24"},
    "mpeg4.avi": {"codec": "mpeg4", "g": "12", "q": "2"},
    "b-frames.avi": {"codec": "mpeg4", "g": "12", "bf": "2", "q": "2"},
}


@pytest.mark.parametrize(("name", "options"), FILMS.items(), ids=FILMS)
def test_cuts_hold_the_frames_that_decoding_everything_gives(tmp_path, name, options):
    path = write_film(tmp_path / name, numbered(130), **options)
    whole = list(read_frames(path))
    assert [read_number(frame) for frame in whole] == list(range(130))
    for start, length in itertools.product((0, 1, 29, 30, 31, 47, 100, 128), (1, 3)):
        cut = list(read_frames(path, start, start + length))
        assert len(cut) == min(length, 130 - start)
        np.testing.assert_array_equal(cut, whole[start : start + length])
    assert list(read_frames(path, 130, 140)) == []
    assert read_timeline(path).num_frames == 130


def test_a_late_cut_costs_no_more_than_the_frames_since_its_key_frame(tmp_path, decoded):
    """Ten frames at the start and at the end of a film of 2000: the work does not grow with what comes before."""
    path = write_film(tmp_path / "film.mp4", numbered(2000, width=48), g="20", preset="ultrafast")
    for start in (0, 1000, 1987):
        decoded.clear()
        assert [read_number(frame) for frame in read_frames(path, start, start + 10)] == list(range(start, start + 10))
        assert len(decoded) <= 10 + 20 + 1


def test_key_frames_that_lead_nowhere_are_not_trusted(tmp_path, monkeypatch, decoded):
    """If a container marks ordinary frames as key frames, decoding starts further back and gives the right frames."""
    path = write_film(tmp_path / "film.mp4", numbered(60), g="60", bf="2")
    whole = list(read_frames(path))
    timeline = read_timeline(path)
    object.__setattr__(timeline, "keys", timeline.times)
    monkeypatch.setattr(decoding, "read_timeline", lambda path: timeline)
    for start in (1, 30, 59):
        np.testing.assert_array_equal(next(read_frames(path, start, start + 1)), whole[start])


def test_frames_between_cost_no_memory(tmp_path):
    """800 frames of 96 x 160 are 35 MiB; streaming through them, and keeping the last ten, stays far below."""
    clip = np.broadcast_to(numbered(800, 16, 160).repeat(6, 1), (800, 96, 160, 3))
    path = write_film(tmp_path / "film.mp4", clip, g="50", preset="ultrafast")
    whole = load_video(path, 96, 160)
    tracemalloc.start()
    for _ in read_frames(path):
        pass
    streaming = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    ends = load_ends(path, 96, 160, last=10)
    keeping = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert streaming < 2 << 20 < whole.nbytes
    assert keeping < 4 << 20
    np.testing.assert_array_equal(ends[:1], whole[:1])
    np.testing.assert_array_equal(ends[790:], whole[790:])
    np.testing.assert_array_equal(ends[793:797], whole[793:797])
    assert len(ends) == 800
    with pytest.raises(IndexError, match="frames 789 to 800 of a clip of which 0 and 790 to 800 are kept"):
        ends[789:]


def test_ends_of_short_clips_lists_and_arrays(tmp_path):
    clip = numbered(12)
    path = write_lossless(tmp_path / "film.mp4", clip)
    for video in (path, str(path), clip, list(clip), clip / np.float32(255)):
        whole = load_video(video, 16, 32)
        for last in (5, 12, 40):
            ends = load_ends(video, 16, 32, last=last)
            assert len(ends) == 12
            np.testing.assert_array_equal(ends[:1], whole[:1])
            np.testing.assert_array_equal(ends[12 - min(last, 12) :], whole[-last:])
        np.testing.assert_array_equal(load_ends(video, 8, 16, last=3)[9:], load_video(video, 8, 16)[9:])


def test_ends_when_packets_do_not_tell_the_number_of_frames(tmp_path, monkeypatch, decoded):
    """The film is decoded once to count them; then its ends are read."""
    path = write_lossless(tmp_path / "film.mp4", numbered(50), g="10")
    timeline = read_timeline(path)
    monkeypatch.setitem(vars(timeline), "times", None)
    ends = load_ends(path, 16, 32, last=7)
    assert len(decoded) == 50 + 50 + 1
    assert [read_number(frame) for frame in ends[43:]] == list(range(43, 50))
    np.testing.assert_array_equal(ends[:1], numbered(1))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_resampling_takes_the_frames_nearest_in_time(tmp_path, ending):
    """Stored at 24 per second, also where the container rounds times to milliseconds."""
    path = write_film(tmp_path / f"film.{ending}", numbered(48), g="12")
    shown = {fps: [read_number(frame) for frame in read_frames(path, fps=fps)] for fps in (24, 12, 30, 24000 / 1001)}
    assert shown[24] == list(range(48))
    assert shown[12] == list(range(0, 48, 2))
    # The frame nearest to 0.8 k; there are no ties.
    assert shown[30] == [min(47, round(Fraction(4 * k, 5))) for k in range(60)]
    assert shown[24000 / 1001] == list(range(48))
    assert [read_number(frame) for frame in read_frames(path, 40, 45, fps=30)] == [32, 33, 34, 34, 35]
    assert list(read_frames(path, 60, 70, fps=30)) == []


def test_resampling_of_a_varying_rate(tmp_path):
    """Frames shown at 0, 0.05, 0.1, 0.5, 0.6 and 0.8 s, sampled ten times a second."""
    times = [Fraction(n, 100) for n in (0, 5, 10, 50, 60, 80)]
    path = write_film(tmp_path / "film.mp4", numbered(6), times=times, bf="0")
    # 0.3 s is as near to frame 2 as to frame 3, and 0.7 s to 4 as to 5: the earlier one is taken.
    assert [read_number(frame) for frame in read_frames(path, fps=10)] == [0, 2, 2, 2, 3, 3, 4, 4]
    assert [read_number(frame) for frame in read_frames(path)] == list(range(6))  # as stored


def test_resampling_needs_times_and_a_rate(tmp_path, monkeypatch):
    path = write_film(tmp_path / "film.mp4", numbered(5))
    with pytest.raises(ClipError, match=r"cannot resample .*film\.mp4 to 0 frames per second: fps=0 must be"):
        list(read_frames(path, fps=0))
    monkeypatch.setitem(vars(read_timeline(path)), "times", None)
    assert len(list(read_frames(path, fps=12))) == 2  # by the rate of the header
    monkeypatch.setitem(vars(read_timeline(path)), "rate", None)
    with pytest.raises(ClipError, match="the file does not store when its frames are shown"):
        list(read_frames(path, fps=24))


def test_a_changed_file_is_read_again(tmp_path):
    path = write_film(tmp_path / "film.mp4", numbered(40))
    assert read_timeline(path).num_frames == 40
    write_film(path, numbered(30))
    assert read_timeline(path).num_frames == 30


def test_other_angles_are_refused(tmp_path):
    path = write_film(tmp_path / "film.mp4", numbered(3))
    path.write_bytes(turn(path.read_bytes(), (0.5**0.5, 0.5**0.5, -(0.5**0.5), 0.5**0.5)))
    with pytest.raises(
        ClipError, match=r"film\.mp4 is rotated by -?45 degrees or sheared; re-encode it without rotation"
    ):
        next(read_frames(path))


def test_bad_bounds_are_refused(tmp_path):
    path = write_film(tmp_path / "film.mp4", numbered(3))
    for start, stop in ((-1, 2), (2, 1)):
        with pytest.raises(ValueError, match="need 0 <= start <= stop"):
            next(read_frames(path, start, stop))


def spoilt(path: pathlib.Path) -> pathlib.Path:
    """The same film with some bytes in its middle wiped out."""
    content = path.read_bytes()
    middle = len(content) * 3 // 4
    other = path.with_name("spoilt.mp4")
    other.write_bytes(content[:middle] + bytes(4000) + content[middle + 4000 :])
    return other


def test_damage_is_noticed_where_it_is_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8)
    path = spoilt(write_film(tmp_path / "film.mp4", noise, g="10", bf="0"))
    with pytest.raises(
        ClipError, match=r"spoilt\.mp4 is damaged or cut off: \d+ frames could be decoded \(up to 1\.\d+ s\)"
    ) as caught:
        list(read_frames(path))
    intact = int(str(caught.value).split("cut off: ")[1].split()[0])
    assert 20 < intact < 35
    assert len(list(read_frames(path, 0, intact))) == intact
    with pytest.raises(ClipError, match=f"{intact} frames could be decoded"):
        list(read_frames(path, intact - 2, intact + 1))
    # Ends that lie beyond the damage are intact.
    assert len(load_ends(path, 64, 96, last=2)) == 40


def test_cut_off_films_are_refused_before_their_end_is_taken_for_it(tmp_path):
    path = write_film(tmp_path / "film.mp4", numbered(40), g="10")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ClipError, match=r"is damaged or cut off: \d+ frames could be decoded; use only those"):
        load_ends(path, 16, 32, last=5)
