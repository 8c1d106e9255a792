"""How much a video moves as a whole: HeliosBench's ``motion_amplitude``.

With the optical flow u_t, of two components in pixels, from frame t to frame t + 1 (G. Farnebäck, "Two-frame motion
estimation based on polynomial expansion", 2003, as in OpenCV),

    amplitude = | mean over frames, positions and both components of A(u_t) |                             (1)

A shrinks the flow to 16 columns by area. The mean is signed: opposite motions cancel, and a camera that turns right and
then left counts as still. Frames are first brought to a width of 640 pixels, or portraits to a height of 384.
"""

import dataclasses
import math
import multiprocessing
from typing import Any

import numpy as np

from helios_jax.evaluation.metrics import Curve, Result, VideoInfo
from helios_jax.typing import Float, UInt8

WIDTH, PORTRAIT_HEIGHT = 640, 384
"""Sizes that HeliosBench evaluates at, in pixels."""

PYRAMID_SCALE, LEVELS, WINDOW, ITERATIONS, NEIGHBOURS, SIGMA = 0.5, 3, 15, 3, 5, 1.2
"""Parameters of the flow, as published."""

COLUMNS = 16
"""Columns of the flow that is averaged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionAmplitude:
    """Equation (1), as a ``Metric``; needs OpenCV. A video of one frame has no motion: NaN.

    Attributes:
        resize: Bring frames to the size of HeliosBench. Off, the flow is measured in pixels of the video.
    """

    resize: bool = True

    @property
    def name(self) -> str:
        """The name in the published tables."""
        return "motion_amplitude"

    def start(self, video: VideoInfo) -> "_Amplitude":
        """See ``Metric``."""
        import cv2

        if multiprocessing.parent_process() is not None:  # one of several that measure
            cv2.setNumThreads(1)
        return _Amplitude(benchmark_size(video.height, video.width) if self.resize else (video.height, video.width))


class _Amplitude:
    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._before: Any = None
        self._means: list[float] = []

    def update(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        for frame in frames:
            grey = _grey(frame, self._size)
            if self._before is not None:
                self._means.append(float(shrunk(flow(self._before, grey)).mean()))
            self._before = grey

    def result(self) -> Result:
        value = abs(float(np.mean(self._means))) if self._means else math.nan
        curve = Curve(axis="frame", at=tuple(range(1, len(self._means) + 1)), values=tuple(self._means))
        return Result(values={"motion_amplitude": value}, curves={"mean flow, pixels": curve})


def benchmark_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns that HeliosBench brings a video to: the aspect is kept, and both sides are even."""
    if width >= height:
        return max(2, height * WIDTH // width // 2 * 2), WIDTH
    return PORTRAIT_HEIGHT, max(2, width * PORTRAIT_HEIGHT // height // 2 * 2)


def flow(before: UInt8[np.ndarray, "H W"], after: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 2"]:
    """Optical flow, in pixels, columns first."""
    import cv2

    start: Any = None
    return cv2.calcOpticalFlowFarneback(
        before, after, start, PYRAMID_SCALE, LEVELS, WINDOW, ITERATIONS, NEIGHBOURS, SIGMA, 0
    )


def shrunk(field: Float[np.ndarray, "H W 2"]) -> Float[np.ndarray, "H2 W2 2"]:
    """The flow with 16 columns, by area; at least one row."""
    import cv2

    height, width = field.shape[:2]
    return cv2.resize(field, (COLUMNS, max(1, height * COLUMNS // width)), interpolation=cv2.INTER_AREA)


def _grey(frame: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H2 W2"]:
    import av
    import cv2

    if frame.shape[:2] != size:
        # The scaler that video decoders use, as HeliosBench asks its decoder for the size; OpenCV's differs by more.
        whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        frame = whole.reformat(height=size[0], width=size[1], interpolation="BICUBIC").to_ndarray(format="rgb24")
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
