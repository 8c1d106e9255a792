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

from helios_jax.media.files import existing_file, open_video
from helios_jax.typing import Int, Path

_KEYS_TRIED = 3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """The frames of the first video stream of a file.

    Attributes:
        num_frames: Frames to be shown, up to the first damaged packet.
        damaged: A packet is damaged, or the file ends before it should.
        times: Presentation times, ascending; ``None`` if the file does not store one per frame, as in old AVI files.
        keys: Presentation times of frames that can be decoded without earlier frames, ascending.
        end: When the last frame disappears.
        tick: Seconds per unit of these times.
    """

    num_frames: int
    damaged: bool
    times: Int[np.ndarray, " F"] | None
    keys: Int[np.ndarray, " K"]
    end: int
    tick: Fraction

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

    def resampled(self, fps: float) -> Int[np.ndarray, " F2"]:
        """Numbers of the frames on the screen 0, 1 / fps, 2 / fps, ... seconds after the first, until the film ends.

        Raises:
            ValueError: ``fps`` is not positive, or the file stores no times.
        """
        if not fps > 0:
            raise ValueError(f"fps must be positive, got {fps}")
        if self.times is None or len(self.times) == 0:
            raise ValueError("the file does not store when its frames are shown; re-encode it as H.264 in mp4")
        step = 1 / (Fraction(fps).limit_denominator(100_000) * self.tick)  # ticks per frame, exactly
        first = int(self.times[0])
        count = max(1, -(-(self.end - first) * step.denominator // step.numerator))
        # Containers round times to their tick (in Matroska a millisecond), so up to half a tick late counts as on time.
        # All terms are integers, in 1/(2 * denominator) tick: floats would misplace frames late in a long film.
        wanted = 2 * np.arange(count, dtype=np.int64) * step.numerator + step.denominator
        shown = 2 * (self.times - first) * step.denominator
        return np.searchsorted(shown, wanted, side="right") - 1


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
        # Not a Fraction in every version of PyAV.
        tick = Fraction(stream.time_base.numerator, stream.time_base.denominator)
    known = None not in times and len(set(times)) == len(times)
    shown = np.sort(np.array(times, np.int64)) if known else None
    if shown is not None and len(shown) > 1 and end <= shown[-1]:  # without durations: as long as the frame before
        end = int(2 * shown[-1] - shown[-2])
    return Timeline(
        num_frames=len(times), damaged=damaged, times=shown, keys=np.sort(np.array(keys, np.int64)), end=end, tick=tick
    )
