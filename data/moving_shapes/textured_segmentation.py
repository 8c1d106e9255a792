"""Segmentation of videos of the second style: textures and unknown hue and lightness in addition.

A texture scales a colour, and so does a lightness. A pixel s in full light is therefore taken for a mixture of the
background's colour b and a palette colour c with any weights that are not negative,

    min over p, q >= 0 of |s - p b - q c|^2 + e |c|^2 (p + q - 1)^2,                       (1)

of which the colour of the least minimum is the label where q >= p. The share

    a = q / (p + q)                                                                        (2)

is how far the shape covers the pixel, whatever the textures of both. Background, light, hue and lightness are found by
synthesis, as in ``segmentation``, in a picture that is blurred over the longest period of a texture.
"""

import dataclasses
import functools

import numpy as np

from helios_jax.data.moving_shapes.looks import BAR_COLOUR, LIGHTNESS, MAX_HUE, MEAN_BRIGHTNESS
from helios_jax.data.moving_shapes.rendering import fade, light
from helios_jax.data.moving_shapes.segmentation import MIN_AREA, Segmentation, cores
from helios_jax.data.moving_shapes.world import BACKGROUNDS, COLOURS, LIGHTS
from helios_jax.typing import Bool, Float, UInt8

_GRID = 10  # pictures are compared at so many points along the shorter side
_BLUR = 8  # pixels: the longest period of a texture
_HUES = tuple(range(-MAX_HUE, MAX_HUE + 1, MAX_HUE // 2))
_LIGHTNESSES = tuple(float(x) for x in np.linspace(0.85 * LIGHTNESS[0], 1.1 * LIGHTNESS[1], 8) / 256 * MEAN_BRIGHTNESS)
_OUTLIER = 0.3  # relative difference of colours beyond which a point only counts as covered by something
_CLOSE = 0.15  # relative difference of colours up to which a point shows the background
_VISIBLE = 0.25  # part of the points that must show it: a bar may cover half
_FLICKER = 0.08  # median difference from the median frame that is too much for a background
_TIE = 0.05  # e in (1)
_DARK = 0.36  # part of the lightness below which every channel of a bar is
_STANDING = 0.5  # part of the frames and of its pixels in which a bar must be uncovered


@dataclasses.dataclass(frozen=True, kw_only=True)
class TexturedSegmentation(Segmentation):
    """A video cut into the background, a bar and regions of one colour.

    ``backdrop`` has the bar, the hue and the lightness of the video, and no texture.

    Attributes:
        palette: What the colours of ``COLOURS`` look like in this video, 0 to 1.
        bar: Where the bar is.
    """

    palette: Float[np.ndarray, "colours 3"]
    bar: Bool[np.ndarray, "H W"]


def segment_textured(frames: UInt8[np.ndarray, "F H W 3"]) -> TexturedSegmentation | None:
    """Cuts ``frames`` into regions; None if they show no background of this world."""
    from scipy import ndimage

    height, width = frames.shape[1:3]
    found = _surroundings(frames)
    if found is None:
        return None
    background, lighting, hue, lightness = found
    ground = lightness / 255 * _shifted(fade(*BACKGROUNDS[background], height, width).astype(np.float32), hue)
    palette = lightness / 255 * _shifted(np.array(list(COLOURS.values()), np.float32), hue)
    surface = frames.astype(np.float32) / (255 / 256 * light(lighting, height, width).astype(np.float32))
    smooth = ndimage.uniform_filter(surface, (0, 3, 3, 0))  # suppresses noise
    bar = _bar(smooth, lightness)
    ground = np.where(bar[..., None], np.array(BAR_COLOUR, np.float32) * lightness / MEAN_BRIGHTNESS / 255, ground)
    labels = _labels(smooth, ground, palette)
    least = MIN_AREA * min(height, width) ** 2
    present = []
    for number in range(len(COLOURS)):
        # Seen in some of the frames: a shape may be away in the others.
        areas = cores(labels == number + 1).sum((1, 2))
        if np.quantile(areas, 0.85) > least:
            present.append(number)
    names = tuple(COLOURS)
    return TexturedSegmentation(
        background=background,
        lighting=lighting,
        surface=surface,
        backdrop=ground,
        labels=_labels(smooth, ground, palette[present]),
        colours=tuple(names[number] for number in present),
        palette=palette[present],
        bar=bar,
    )


def coverage_of(scene: TexturedSegmentation, label: int) -> Float[np.ndarray, "F H W"]:
    """How far the shape of ``label`` covers each pixel, by (2)."""
    ground, shape, _ = _mixture(scene.surface, scene.backdrop, scene.palette[label - 1])
    return shape / np.maximum(ground + shape, 1e-6)


def _mixture(
    surface: Float[np.ndarray, "F H W 3"], ground: Float[np.ndarray, "H W 3"], colour: Float[np.ndarray, " 3"]
) -> tuple[Float[np.ndarray, "F H W"], Float[np.ndarray, "F H W"], Float[np.ndarray, "F H W"]]:
    """p and q of (1), and the minimum without |s|^2, which all colours share."""
    tie = _TIE * float(colour @ colour)
    bb, bc, cc = (ground**2).sum(-1) + tie, ground @ colour + tie, float(colour @ colour) + tie
    sb, sc = np.einsum("fhwc,hwc->fhw", surface, ground) + tie, surface @ colour + tie
    determinant = bb * cc - bc**2
    p, q = (sb * cc - sc * bc) / determinant, (sc * bb - sb * bc) / determinant
    p, q = np.where(q < 0, sb / bb, p), np.where(p < 0, sc / cc, q)
    p, q = np.maximum(p, 0), np.maximum(q, 0)
    return p, q, p * (p * bb - 2 * sb) + q * (q * cc - 2 * sc) + 2 * p * q * bc + tie


def _labels(
    surface: Float[np.ndarray, "F H W 3"], ground: Float[np.ndarray, "H W 3"], palette: Float[np.ndarray, "colours 3"]
) -> UInt8[np.ndarray, "F H W"]:
    """By (1): k where ``palette[k - 1]`` explains a pixel best and covers at least half of it, else 0."""
    best = np.full(surface.shape[:3], np.inf, np.float32)
    labels = np.zeros(surface.shape[:3], np.uint8)
    for number, colour in enumerate(palette):
        p, q, error = _mixture(surface, ground, colour)
        better = error < best
        best = np.where(better, error, best)
        labels = np.where(better, (q >= p) * np.uint8(number + 1), labels)
    return labels


def _bar(surface: Float[np.ndarray, "F H W 3"], lightness: float) -> Bool[np.ndarray, "H W"]:
    """The rows or columns that are dark over their whole length, apart from shapes in front of them."""
    dark = (surface.max(-1) < _DARK * lightness).mean(0) > _STANDING
    bar = np.zeros_like(dark)
    for axis in (0, 1):
        lines = dark.mean(axis) > _STANDING
        if lines.mean() > 0.1:
            bar |= lines[None, :] if axis == 0 else lines[:, None]
    return bar


def _surroundings(frames: UInt8[np.ndarray, "F H W 3"]) -> tuple[str, str, int, float] | None:
    """Names of the background and the lighting, the hue, and the lightness with what textures take."""
    from scipy import ndimage

    height, width = frames.shape[1:3]
    step = max(1, min(height, width) // _GRID)
    frames = frames[:: max(1, len(frames) // 33)]
    median = np.median(frames, axis=0)
    if np.median(abs(frames - median.astype(np.float32))) > _FLICKER * 255:
        return None
    still = ndimage.uniform_filter((median / 255).astype(np.float32), (_BLUR, _BLUR, 0))
    still = still[step // 2 :: step, step // 2 :: step]
    table = _surroundings_table(height, width, step)
    best = (np.inf, 0, 0.0)
    # Of the relative difference |l b - s| / |l b| for the lightness l, with x = 1 / l: |b - x s|^2 / |b|^2.
    products = np.einsum("nhwc,hwc->nhw", table, still) / (table**2).sum(-1)
    squares = (still**2).sum(-1) / (table**2).sum(-1)
    for lightness in _LIGHTNESSES:
        errors = np.sqrt(np.maximum(1 - 2 * products / lightness + squares / lightness**2, 0))
        means = np.minimum(errors, _OUTLIER).mean((1, 2))
        index = int(means.argmin())
        best = min(best, (float(means[index]), index, lightness))
    _, index, lightness = best
    picture = table[index]
    length = np.linalg.norm(picture, axis=-1)
    for _ in range(3):
        errors = np.linalg.norm(lightness * picture - still, axis=-1) / (lightness * length)
        inside = errors < _CLOSE
        if inside.mean() < _VISIBLE:
            return None
        lightness = float((still * picture).sum(-1)[inside].sum() / (picture**2).sum(-1)[inside].sum())
    rest, hue = divmod(index, len(_HUES))
    background, lighting = divmod(rest, len(LIGHTS))
    return tuple(BACKGROUNDS)[background], tuple(LIGHTS)[lighting], _HUES[hue], lightness


@functools.lru_cache(maxsize=4)
def _surroundings_table(height: int, width: int, step: int) -> Float[np.ndarray, "surroundings H W 3"]:
    """Every background in every light and some hues, 0 to 1, at the middle of squares of ``step`` pixels."""
    part = slice(step // 2, None, step)
    lights = np.stack([light(name, height, width)[part, part] for name in LIGHTS]) / np.float32(256)
    fades = np.stack([fade(*colours, height, width)[part, part] for colours in BACKGROUNDS.values()])
    shifted = np.stack([_shifted(fades.astype(np.float32), hue) for hue in _HUES], axis=1) / 255
    table = shifted[:, None] * lights[:, None]
    return table.reshape(-1, *table.shape[3:]).astype(np.float32)


def _shifted(colours: Float[np.ndarray, "*shape 3"], hue: int) -> Float[np.ndarray, "*shape 3"]:
    """Colours rotated by a hue."""
    return colours @ _rotation(hue)


@functools.cache
def _rotation(hue: int) -> Float[np.ndarray, "3 3"]:
    """The matrix of ``looks.tinted``, for rows of colours."""
    angle = 2 * np.pi * hue / 65536
    cross = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / np.sqrt(3)
    matrix = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    return matrix.astype(np.float32)
