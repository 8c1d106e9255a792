"""Scores of a window of a video against the scene that it should show, for videos of any length.

The state of a scene is known at every frame, so each window is compared with the truth of its own frames:

    first, *others = windows of 33 frames
    scores = [score_window(first, scene, 0)]
    scores += [score_window(one, scene, 33 * (n + 1), scores[0].reference) for n, one in enumerate(others)]

Only windows of the same scene's video are compared with it. They need a video that starts as the scene does: one that
was continued from the scene's first frame or chunk, because captions do not say where shapes start.

With the observed centre x, the true centre X and the shorter side s of the frame, both of a shape that touches nothing
else in the truth, and n = 6 frames,

    path error    |x(t) - X(t)| / s                                                         (1)
    speed ratio   |x(t) - x(t - n)| / |X(t) - X(t - n)|                                     (2)

With the colour c, in CIELAB, of a region of the video in the full light of the scene, and that of the same region of
the rendered scene, C,

    colour distance   |(c(t) - C(t)) - (c(0) - C(0))|,                                      (3)

and the ratio of high bands is that of ``measures.high_band_power``. Of the rendered scene itself (1) is below a
hundredth, (2) and the ratio of high bands are 1, and (3) is 0.
"""

import dataclasses

import numpy as np

from helios_jax.data.moving_shapes.measures import cielab, high_band_power
from helios_jax.data.moving_shapes.paths import centres
from helios_jax.data.moving_shapes.rendering import light, render
from helios_jax.data.moving_shapes.segmentation import cores
from helios_jax.data.moving_shapes.sight import Spell, clear_of_all, returns_in
from helios_jax.data.moving_shapes.textured_observation import Track, track
from helios_jax.data.moving_shapes.textured_segmentation import TexturedSegmentation, segment_textured
from helios_jax.data.moving_shapes.window_captions import CaptionScore, caption_score
from helios_jax.data.moving_shapes.world import UNIT, Scene
from helios_jax.typing import Bool, Float, UInt8

LAG = 6
"""Frames between the positions of (2)."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The differences c(0) - C(0) of (3).

    Attributes:
        background: Of the background.
        shapes: Of each shape; NaN if it was not seen.
    """

    background: Float[np.ndarray, " 3"]
    shapes: Float[np.ndarray, "shapes 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Return:
    """Whether a shape is the same after it was out of sight.

    Attributes:
        spell: When it was away in the scene.
        colour: A shape of its colour is seen.
        kind: And it has the right kind.
        size: And the right size.
    """

    spell: Spell
    colour: bool
    kind: bool
    size: bool

    @property
    def same(self) -> bool:
        """Everything is right."""
        return self.colour and self.kind and self.size


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WindowScore:
    """A window of a video against its scene. What cannot be known is NaN: shapes that are away, covered or not found.

    Attributes:
        start: Number of its first frame.
        caption: Which statements of the caption hold.
        path_error: By (1), in shorter sides.
        speed_ratio: By (2).
        background_distance: By (3).
        shape_distance: By (3).
        high_band_ratio: Power of fine detail, divided by that of the scene.
        returns: Of the shapes of which this is the first window that shows them clearly after an absence.
        reference: For later windows.
    """

    start: int
    caption: CaptionScore
    path_error: Float[np.ndarray, "shapes F"]
    speed_ratio: Float[np.ndarray, "shapes F"]
    background_distance: Float[np.ndarray, " F"]
    shape_distance: Float[np.ndarray, "shapes F"]
    high_band_ratio: Float[np.ndarray, " F"]
    returns: tuple[Return, ...]
    reference: Reference

    @property
    def values(self) -> dict[str, float]:
        """The window in numbers: medians over frames and shapes, fractions of statements; NaN for what is not known."""
        return {
            "recovered": float(self.caption.recovered),
            "caption": self.caption.value,
            "path_error": _median(self.path_error),
            "speed_ratio": _median(self.speed_ratio),
            "background_distance": _median(self.background_distance),
            "shape_distance": _median(self.shape_distance),
            "high_band_ratio": _median(self.high_band_ratio),
            "returned": float(np.mean([one.same for one in self.returns])) if self.returns else float("nan"),
        }


def score_window(
    frames: UInt8[np.ndarray, "F H W 3"], scene: Scene, start: int, reference: Reference | None = None
) -> WindowScore:
    """Compares frames ``start``, ``start + 1``, ... of a video with ``scene``; 33 of 64 x 64 take about 0.3 s.

    All windows of a video should have the same number of frames, of which the returns depend.

    Args:
        frames: The window.
        scene: A scene of the textured style.
        start: Number of its first frame.
        reference: That of the first window; None: this is the first.

    Raises:
        ValueError: The scene is of another style, there are less than 12 frames, or a later window has no reference.
    """
    if scene.look is None:
        raise ValueError("windows are compared with scenes of the textured style; this one has no look")
    if len(frames) < 12:
        raise ValueError(f"a window needs at least 12 frames, got {len(frames)}")
    if start < 0 or (start and reference is None):
        raise ValueError(f"the window from frame {start} needs the reference of the one from frame 0")
    count, height, width = frames.shape[:3]
    times, side = range(start, start + count), min(height, width)
    truth = render(scene, times, height, width)
    seen, true = track(frames, from_start=False), segment_textured(truth)
    by_colour = {one.shape.colour: one for one in seen.shapes}
    tracks = [by_colour.get(shape.colour) for shape in scene.description.shapes]
    clear = clear_of_all(scene, times, height, width)
    paths = centres(scene, times, height, width) / (UNIT * side)
    found = np.stack([_path(one, count) for one in tracks]) / side
    found = np.where(clear[..., None], found, np.nan)
    differences = _differences(frames, truth, seen.scene, true, scene)
    reference = reference or Reference(background=differences[0][0], shapes=_first(differences[1]))
    return WindowScore(
        start=start,
        caption=caption_score(seen, scene, times, height, width),
        path_error=np.linalg.norm(found - paths, axis=-1),
        speed_ratio=_speed_ratio(found, np.where(clear[..., None], paths, np.nan)),
        background_distance=np.linalg.norm(differences[0] - reference.background, axis=-1),
        shape_distance=np.linalg.norm(differences[1] - reference.shapes[:, None], axis=-1),
        high_band_ratio=high_band_power(frames) / high_band_power(truth),
        returns=tuple(
            Return(
                spell=spell,
                colour=one is not None,
                kind=one is not None and one.shape.kind == shape.kind,
                size=one is not None and one.shape.size == shape.size,
            )
            for spell in returns_in(scene, times, height, width)
            for one, shape in ((tracks[spell.shape], scene.description.shapes[spell.shape]),)
        ),
        reference=reference,
    )


def score_windows(frames: UInt8[np.ndarray, "F H W 3"], scene: Scene, window: int = 33) -> tuple[WindowScore, ...]:
    """``score_window`` of every whole window of a video from its beginning.

    Raises:
        ValueError: There is no whole window, or see ``score_window``.
    """
    if len(frames) < window:
        raise ValueError(f"need at least one window of {window} frames, got {len(frames)}")
    scores: list[WindowScore] = []
    for start in range(0, len(frames) - window + 1, window):
        reference = scores[0].reference if scores else None
        scores.append(score_window(frames[start : start + window], scene, start, reference))
    return tuple(scores)


def _median(values: Float[np.ndarray, "..."]) -> float:
    """The median of what is known."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _path(found: Track | None, count: int) -> Float[np.ndarray, "F 2"]:
    """The centres of a shape in pixels; NaN where it is not found."""
    if found is None:
        return np.full((count, 2), np.nan)
    return np.where(found.found[:, None], found.path, np.nan)


def _speed_ratio(
    found: Float[np.ndarray, "shapes F 2"], paths: Float[np.ndarray, "shapes F 2"]
) -> Float[np.ndarray, "shapes F"]:
    """(2)."""
    ratio = np.full(found.shape[:2], np.nan)
    ways = np.linalg.norm(paths[:, LAG:] - paths[:, :-LAG], axis=-1)
    # A shape that turns within the lag hardly moves: the ratio would say nothing.
    ways = np.where(ways > 0.5 * np.nanmax(ways, axis=1, keepdims=True, initial=0), ways, np.nan)
    ratio[:, LAG:] = np.linalg.norm(found[:, LAG:] - found[:, :-LAG], axis=-1) / ways
    return ratio


def _differences(
    frames: UInt8[np.ndarray, "F H W 3"],
    truth: UInt8[np.ndarray, "F H W 3"],
    seen: TexturedSegmentation | None,
    true: TexturedSegmentation | None,
    scene: Scene,
) -> tuple[Float[np.ndarray, "F 3"], Float[np.ndarray, "shapes F 3"]]:
    """c - C of (3): of the background, where both show it, and of each shape, where each shows it."""
    lit = 255 / 256 * light(scene.description.lighting, *frames.shape[1:3]).astype(np.float32)
    surfaces = [video.astype(np.float32) / lit for video in (frames, truth)]
    ground = np.logical_and(*(_ground(segments, frames.shape[:3]) for segments in (seen, true)))
    background, true_background = (cielab(_mean(surface, ground)) for surface in surfaces)
    shapes = []
    for shape in scene.description.shapes:
        found, expected = (
            cielab(_mean(surface, _core(segments, shape.colour, frames.shape[:3])))
            for surface, segments in zip(surfaces, (seen, true), strict=True)
        )
        shapes.append(found - expected)
    return background - true_background, np.stack(shapes)


def _ground(scene: TexturedSegmentation | None, shape: tuple[int, ...]) -> Bool[np.ndarray, "F H W"]:
    """Pixels well within the background; all of them if the video shows none of this world."""
    return np.ones(shape, bool) if scene is None else cores((scene.labels == 0) & ~scene.bar)


def _core(scene: TexturedSegmentation | None, colour: str, shape: tuple[int, ...]) -> Bool[np.ndarray, "F H W"]:
    """Pixels well within the shape of that colour; none of them if it is not there."""
    if scene is None or colour not in scene.colours:
        return np.zeros(shape, bool)
    return cores(scene.labels == 1 + scene.colours.index(colour))


def _mean(surface: Float[np.ndarray, "F H W 3"], mask: Bool[np.ndarray, "F H W"]) -> Float[np.ndarray, "F 3"]:
    """The mean colour of the masked pixels of each frame; NaN if there are none."""
    total = np.einsum("fhwc,fhw->fc", surface, mask.astype(np.float32))
    count = mask.sum((1, 2))[:, None]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _first(values: Float[np.ndarray, "shapes F 3"]) -> Float[np.ndarray, "shapes 3"]:
    """The first known value of each shape; NaN if there is none."""
    known = np.isfinite(values).all(-1)
    first = known.argmax(1)
    return values[np.arange(len(values)), first]
