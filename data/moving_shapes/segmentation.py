"""Segmentation of a video: its background, its light, and the coloured regions that differ from them.

The background is found by synthesis: all combinations of ``BACKGROUNDS`` and ``LIGHTS`` are compared with
the median frame. Dividing by the light gives surface colours s. A pixel is taken for a mixture of the
background's colour b and the palette colour c for which

    min over 0 <= a <= 1 of |s - b - a (c - b)|^2                                        (1)

is least, and belongs to c if a >= 1/2. (The nearest colour would take the edges of a red shape on cream
for orange.) Colours that fill no more than thin lines are edges between shapes and are left out.
"""

import dataclasses
import functools

import numpy as np

from helios_jax.data.moving_shapes.rendering import backdrop, light
from helios_jax.data.moving_shapes.world import BACKGROUNDS, COLOURS, LIGHTS
from helios_jax.typing import Bool, Float, UInt8

_OUTLIER = 0.25  # difference of colours, in 1, beyond which a pixel only counts as covered by something
_CLOSE = 0.12  # difference of colours up to which a pixel shows the background
_FLICKER = 0.08  # median difference from the median frame that is too much for a background
_VISIBLE = 0.4  # part of the pixels that must show it
MIN_AREA = 0.003  # of the square of the shorter side: half of the core of the smallest shape

_PALETTE = np.array(list(COLOURS.values()), np.float32) / 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A video cut into the background and regions of one colour.

    Attributes:
        background: Name of the background.
        lighting: Name of the lighting.
        surface: Colours in full light, 0 to 1.
        backdrop: The same of the background alone.
        labels: 0 for the background, k for ``colours[k - 1]``.
        colours: Names of the colours that are there.
    """

    background: str
    lighting: str
    surface: Float[np.ndarray, "F H W 3"]
    backdrop: Float[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "F H W"]
    colours: tuple[str, ...]


def segment(frames: UInt8[np.ndarray, "F H W 3"]) -> Segmentation | None:
    """Cuts ``frames`` into regions; None if they show no background of this world."""
    from scipy import ndimage

    height, width = frames.shape[1:3]
    found = _surroundings(frames)
    if found is None:
        return None
    background, lighting = found
    ground = backdrop(background, height, width).astype(np.float32) / 255
    surface = frames.astype(np.float32) / (255 / 256 * light(lighting, height, width).astype(np.float32))
    smooth = ndimage.uniform_filter(surface, (0, 3, 3, 0))  # suppresses noise
    labels = _labels(smooth, ground, _PALETTE)
    least = MIN_AREA * min(height, width) ** 2
    present = []
    for number in range(len(COLOURS)):
        region = labels == number + 1
        # The second condition implies the first, which costs less.
        if np.median(region.sum((1, 2))) > least and np.median(cores(region).sum((1, 2))) > least:
            present.append(number)
    names = tuple(COLOURS)
    return Segmentation(
        background=background,
        lighting=lighting,
        surface=surface,
        backdrop=ground,
        labels=_labels(smooth, ground, _PALETTE[present]),
        colours=tuple(names[number] for number in present),
    )


def grow(mask: Bool[np.ndarray, "F H W"], reach: int) -> Bool[np.ndarray, "F H W"]:
    """Pixels that have one of ``mask`` at most ``reach`` rows and columns away."""
    for axis in (1, 2):
        lines = np.moveaxis(mask, axis, 0)
        grown = lines.copy()
        for step in range(1, reach + 1):
            grown[step:] |= lines[:-step]
            grown[:-step] |= lines[step:]
        mask = np.moveaxis(grown, 0, axis)
    return mask


def cores(mask: Bool[np.ndarray, "F H W"]) -> Bool[np.ndarray, "F H W"]:
    """``mask`` without the parts thinner than three pixels, which may be edges of something else."""
    return grow(~grow(~mask, 1), 1)


def _surroundings(frames: UInt8[np.ndarray, "F H W 3"]) -> tuple[str, str] | None:
    """Names of the background and the lighting."""
    from scipy import ndimage

    height, width = frames.shape[1:3]
    step = max(1, min(height, width) // 32)
    frames = frames[:: max(1, len(frames) // 33)]
    median = np.median(frames, axis=0)
    if np.median(abs(frames - median.astype(np.float32))) > _FLICKER * 255:
        return None
    still = ndimage.uniform_filter(median / 255, (3, 3, 0))[::step, ::step]
    errors = np.linalg.norm(_surroundings_table(height, width, step) - still.astype(np.float32), axis=-1)
    best = int(np.minimum(errors, _OUTLIER).mean((1, 2)).argmin())
    if (errors[best] < _CLOSE).mean() < _VISIBLE:
        return None
    background, lighting = divmod(best, len(LIGHTS))
    return tuple(BACKGROUNDS)[background], tuple(LIGHTS)[lighting]


@functools.lru_cache(maxsize=4)
def _surroundings_table(height: int, width: int, step: int) -> Float[np.ndarray, "surroundings H W 3"]:
    """Every background in every light, 0 to 1, at each ``step``-th pixel."""
    lights = np.stack([light(name, height, width)[::step, ::step] for name in LIGHTS])
    backdrops = np.stack([backdrop(name, height, width)[::step, ::step] for name in BACKGROUNDS])
    table = backdrops[:, None] * lights[None] / np.float32(256 * 255)
    return table.reshape(-1, *table.shape[2:]).astype(np.float32)


def _labels(
    surface: Float[np.ndarray, "F H W 3"], ground: Float[np.ndarray, "H W 3"], palette: Float[np.ndarray, "colours 3"]
) -> UInt8[np.ndarray, "F H W"]:
    """By (1): k where ``palette[k - 1]`` explains a pixel best and covers at least half of it, else 0."""
    offset = surface - ground
    best = np.full(surface.shape[:3], np.inf, np.float32)
    labels = np.zeros(surface.shape[:3], np.uint8)
    for number, colour in enumerate(palette):
        change = colour - ground
        along, length = np.einsum("fhwc,hwc->fhw", offset, change), (change**2).sum(-1)
        part = np.clip(along / length, 0, 1)
        error = part * (part * length - 2 * along)  # without |offset|^2, which all colours share
        better = error < best
        best = np.where(better, error, best)
        labels = np.where(better, (part >= 0.5) * np.uint8(number + 1), labels)
    return labels
