"""Chunks of a video against the scene that it begins with, as a ``Metric``; see ``data.moving_shapes.windows``.

Only videos that start as their scene does can be compared with it: rendered scenes, scenes through the VAE, and
continuations of a scene's first chunk (``helios-evaluate --continue_scenes``).
"""

import dataclasses

import numpy as np

from helios_jax.data.moving_shapes.styles import sample_scene
from helios_jax.data.moving_shapes.windows import Reference, WindowScore, score_window
from helios_jax.data.moving_shapes.world import Scene
from helios_jax.evaluation.metrics import Curve, Result, VideoInfo
from helios_jax.typing import UInt8

OF_WINDOWS = {
    "path_error": "path error",
    "speed_ratio": "speed ratio",
    "background_distance": "colour distance of the background",
    "shape_distance": "colour distance of shapes",
    "high_band_ratio": "ratio of high bands",
}
"""Fields of ``WindowScore`` of which the mean is reported, and the names of their curves."""

CAPTION, SAME = "caption score against the scene", "same after return"
"""The names of two further curves: statements of the caption that hold, and shapes that are what they were."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneWindows:
    """Compares every whole chunk with a scene of the textured style, the number of which is the video's name.

    Values: ``last_<field>`` for the fields of ``OF_WINDOWS``, means over the last whole chunk, and
    ``same_after_return``, the part of the shapes that are what they were after they were out of sight.

    Attributes:
        seed: The world.
        num_shapes: Shapes in each scene; ``None``: 1 to 3.
    """

    seed: int
    num_shapes: int | None = None

    @property
    def name(self) -> str:
        """See ``Metric``."""
        return "scene_windows"

    def start(self, video: VideoInfo) -> "_SceneWindows":
        """See ``Metric``."""
        number = int(video.name.partition("_")[0])
        scene = sample_scene(self.seed, number, num_shapes=self.num_shapes, style="textured")
        return _SceneWindows(scene, video.chunk_frames)


class _SceneWindows:
    def __init__(self, scene: Scene, chunk_frames: int) -> None:
        self._scene, self._chunk_frames = scene, chunk_frames
        self._reference: Reference | None = None
        self._means: dict[str, list[float]] = {name: [] for name in OF_WINDOWS}
        self._captions: list[float] = []
        self._same: list[bool] = []
        self._same_of_chunks: list[float] = []

    def update(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        if len(frames) < self._chunk_frames:  # the end of the video
            return
        start = len(self._captions) * self._chunk_frames
        found: WindowScore = score_window(frames, self._scene, start, self._reference)
        self._reference = found.reference
        for name, means in self._means.items():
            means.append(_mean(getattr(found, name)))
        self._captions.append(found.caption.value)
        same = [one.same for one in found.returns]
        self._same += same
        self._same_of_chunks.append(_mean(np.array(same, np.float64)))

    def result(self) -> Result:
        values = {f"last_{name}": means[-1] if means else float("nan") for name, means in self._means.items()}
        values["same_after_return"] = _mean(np.array(self._same, np.float64))
        curves = {OF_WINDOWS[name]: Curve.over("chunk", means) for name, means in self._means.items()}
        curves[CAPTION] = Curve.over("chunk", self._captions)
        curves[SAME] = Curve.over("chunk", self._same_of_chunks)
        return Result(values=values, curves=curves)


def _mean(values: np.ndarray) -> float:
    """The mean of what is known; NaN if nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
