"""When each frame of a video file is shown, found without decoding: what seeking and resampling need.

Files are addressed by time, but callers count frames. A frame's number is its rank in presentation order. It follows
neither from the frame rate (it may vary) nor from the order of packets (B-frames come after frames that are shown
later), so the packets are read once, at a few microseconds each, and their presentation times are sorted.
"""

import dataclasses
import functools
import pathlib
from fractions import Fraction

import numpy as np

from helios_jax.media.containers import is_cut_off
from helios_jax.media.files import open_video
from helios_jax.media.rates import frame_rate
from helios_jax.typing import Float, Int, Path
from helios_jax.user_input import existing_file

_KEYS_TRIED = 3

_SAME_RATE = 0.002

_LONGEST = 1000
"""Most frames that one stored frame may stand for on average; more is a damaged clock."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """The frames of the main video stream of a file.

    Attributes:
        num_frames: Frames to be shown, up to the first damaged packet.
        damaged: A packet is damaged, or the file ends before it should.
        times: Presentation times, ascending; ``None`` if the file does not store one per frame, as in old AVI files.
        keys: Presentation times of frames that can be decoded without earlier frames, ascending.
        end: When the last frame disappears.
        tick: Seconds per unit of these times.
        rate: Frames per second according to the header, used if there are no timestamps; ``None`` if not stated.
    """

    num_frames: int
    damaged: bool
    times: Int[np.ndarray, " F"] | None
    keys: Int[np.ndarray, " K"]
    end: int
    tick: Fraction
    rate: Fraction | None = None

    def keys_before(self, frame: int) -> list[int]:
        """Times of the last key frames up to a frame, the nearest first.

        Empty when seeking does not help: near the start of the film, beyond its end, or without times.
        """
        if self.times is None or not 0 < frame < len(self.times):
            return []
        # The first key frame is left out: reading begins there anyway.
        count = int(np.searchsorted(self.keys, self.times[frame], side="right"))
        return self.keys[1:count][: -_KEYS_TRIED - 1 : -1].tolist()

    def time(self, frame: int) -> int | None:
        """When a frame appears, if that is known."""
        return None if self.times is None else int(self.times[frame])

    def number(self, time: int | None) -> int | None:
        """The number of the frame that appears at ``time``; ``None`` if none does."""
        if self.times is None or time is None:
            return None
        number = int(np.searchsorted(self.times, time))
        return number if number < len(self.times) and self.times[number] == time else None

    def part(self, start: int, stop: int) -> "Timeline":
        """The timeline of the frames ``start`` to ``stop``; their timestamps do not change.

        Raises:
            ValueError: The range is empty or exceeds the film.
        """
        if not 0 <= start <= stop <= self.num_frames:
            raise ValueError(f"frames {start} to {stop} of a film of {self.num_frames}")
        if (start, stop) == (0, self.num_frames):
            return self
        times = None if self.times is None else self.times[start:stop]
        end = self.end if self.times is None or stop == self.num_frames else int(self.times[stop])
        return dataclasses.replace(self, num_frames=stop - start, times=times, end=end)

    def resampled(self, fps: float | Fraction) -> Int[np.ndarray, " F2"]:
        """Numbers of the frames that are nearest in time to 0, 1 / fps, 2 / fps, ... seconds after the first.

        Of two frames that are equally near, the earlier one is taken. There are as many as the duration holds, rounded.
        A steady rate within 0.2 % of ``fps`` is kept as it is: 23.976 counts as 24.

        Raises:
            ValueError: ``fps`` is not a frame rate, or the timestamps are missing or inconsistent.
        """
        rate = float(frame_rate(fps))
        seconds, duration = self._seconds()
        count = round(duration * rate)
        if count > _LONGEST * len(seconds) + _LONGEST:
            raise ValueError(
                f"its {len(seconds)} frames are spread over {duration:.6g} seconds; re-encode it as H.264 in mp4"
            )
        number = np.arange(len(seconds))
        steady = np.abs(seconds - number * duration / len(seconds)).max() < 0.5 / rate
        if steady and abs(len(seconds) / (duration * rate) - 1) < _SAME_RATE:
            return number
        wanted = np.arange(max(1, count)) / rate
        later = np.searchsorted(seconds, wanted).clip(1, max(1, len(seconds) - 1))
        earlier = later - 1
        later = later.clip(max=len(seconds) - 1)
        # A tolerance above rounding errors, because ties are common, for example from 60 to 24 frames per second.
        return np.where(wanted - seconds[earlier] <= seconds[later] - wanted + 1e-6, earlier, later)

    def _seconds(self) -> tuple[Float[np.ndarray, " F"], float]:
        """When frames appear after the first, and how long the video is, in seconds."""
        if self.num_frames == 0:
            raise ValueError("it holds no frames")
        if self.times is not None:
            first = int(self.times[0])
            seconds, duration = (self.times - first) * float(self.tick), float((self.end - first) * self.tick)
        elif self.rate:
            seconds, duration = np.arange(self.num_frames) / float(self.rate), float(self.num_frames / self.rate)
        else:
            raise ValueError("the file does not store when its frames are shown; re-encode it as H.264 in mp4")
        if not duration > 0:
            raise ValueError("all its frames are shown at the same time; re-encode it as H.264 in mp4")
        return seconds, duration


def read_timeline(path: Path) -> Timeline:
    """Reads the packets of a video file; the result is cached, since many clips may be cut from one film.

    Raises:
        FileNotFoundError: The path does not exist.
        ClipError: It is not a video.
    """
    path = existing_file(path, "video")
    stat = path.stat()
    return _scan(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _scan(path: pathlib.Path, size: int, modified: int) -> Timeline:
    del size, modified  # parts of the key: a file that has changed is read again
    times, keys, end, damaged = [], [], 0, False
    with open_video(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                damaged = True
                break
            if not packet.size:  # the empty packet at the end
                continue
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
            if not packet.is_discard:  # an edit list may hide frames that others refer to
                times.append(packet.pts)
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
        tick = Fraction(stream.time_base)
        rate = Fraction(stream.average_rate) if stream.average_rate else None
    known = None not in times and len(set(times)) == len(times)
    shown = np.sort(np.array(times, np.int64)) if known else None
    if shown is not None and len(shown) > 1 and end <= shown[-1]:  # without durations: as long as the frame before
        end = int(2 * shown[-1] - shown[-2])
    if shown is not None and len(shown) == 1 and end <= shown[0] and rate:
        end = int(shown[0] + 1 / (rate * tick))
    return Timeline(
        num_frames=len(times),
        damaged=damaged or is_cut_off(path),
        times=shown,
        keys=np.sort(np.array(keys, np.int64)),
        end=end,
        tick=tick,
        rate=rate,
    )
