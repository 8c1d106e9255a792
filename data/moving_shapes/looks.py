"""The second style of the world: what scenes look like beyond their captions, and who is away at times.

Captions say nothing of a ``Look``: the hue and lightness of the whole scene, textures, rotation. Only the first frame
of a video tells them, so a model keeps them only if it remembers that frame. With the palette colour c, the hue h and
the lightness l, a surface has the colour

    l (c cos h + (k x c) sin h + k (k . c) (1 - cos h)),   k = (1, 1, 1) / sqrt 3,                     (1)

the rotation about the grey axis. A texture darkens it by at most 30 % along one wave, or two that cross at right
angles; with the distance s along a wave of the period p, in pixels, the darkness is

    0.15 (1 + sin(2 pi s / p + phase)).                                                              (2)

Sines come from a table of integers. No entry is closer than 1e-5 to a tie of its rounding, so every platform's sine
gives the same table. A texture keeps its period in pixels at every size of the frame.
"""

import dataclasses
import functools
from typing import Literal

import numpy as np

from helios_jax.typing import Int

TURN = 2**16
"""Angles and phases are integers of this fraction of a turn."""

ONE = 2**14
"""Sines are integers of this fraction."""

MAX_HUE = 1456
"""8 degrees: half the distance between the nearest hues of shapes is 12."""

LIGHTNESS = (200, 248)
"""Least and most lightness, in 1/256: a colour with the largest hue stays below white."""

PERIODS = (4 * 256, 8 * 256)
"""Least and most period of a texture, in 1/256 pixel."""

SPINS = (91, 273)
"""Least and most rotation per frame, in turns: half a degree to one and a half."""

DEPTH = 77
"""How much of the light a texture takes at most, in 1/256."""

MEAN_BRIGHTNESS = 1 - DEPTH / 512
"""Mean of the factor by which a texture darkens."""

ABSENCES = (8, 16, 32, 48, 64, 96, 120, 150)
"""For how many frames a shape leaves the frame; a history of 19 latent frames reaches back 76."""

BAR_COLOUR = (52, 52, 52)
"""Darker than shapes and backgrounds."""

CIRCUMRADII = {"circle": 256, "square": 297, "triangle": 296, "star": 270}
"""Radius of the circle around a shape, about its centroid, in 1/256 of half its width."""

PATTERNS = ("stripes", "checks")
"""One wave, or two."""

_STEP = 16  # fractions of a turn between entries of the table of sines
_THIRD_ROOT = (37837, 65536)  # 3 ** -0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Absence:
    """A shape that is out of sight at times.

    Attributes:
        colour: Which shape: its colour.
        beyond: It leaves the frame, at the border that it moves to first, or passes behind a bar.
        frames: For how many frames it leaves, of ``ABSENCES``. Behind a bar it moves on, so the bar's width decides,
            and this is 0.
    """

    colour: str
    beyond: Literal["frame", "bar"]
    frames: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texture:
    """A pattern that a surface is darkened by.

    Attributes:
        pattern: One of ``PATTERNS``.
        period: Length of a wave, in 1/256 pixel.
        angle: Direction of the first wave.
        phases: Of both waves at the origin: the centroid of the shape, or the middle of the frame.
    """

    pattern: str
    period: int
    angle: int
    phases: tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar across the whole frame, in front of the absent shape and behind all others.

    Attributes:
        gap: Distance from the border that the absent shape moves to first, in 1/256 of the shorter side.
        width: Its width in this unit.
    """

    gap: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What no caption says of a scene.

    Attributes:
        hue: Rotation of all hues, within ``MAX_HUE`` in both directions.
        lightness: Factor of all colours, in 1/256.
        ground: Texture of the background.
        textures: Texture of each shape.
        angles: Orientation of each shape at frame 0.
        spins: Rotation of each shape per frame, clockwise if positive.
        bar: The bar, if a shape passes behind one.
    """

    hue: int
    lightness: int
    ground: Texture
    textures: tuple[Texture, ...]
    angles: tuple[int, ...]
    spins: tuple[int, ...]
    bar: Bar | None = None


@functools.cache
def _sines() -> Int[np.ndarray, " angles"]:
    table = np.round(ONE * np.sin(2 * np.pi * np.arange(TURN // _STEP) / (TURN // _STEP))).astype(np.int32)
    table.setflags(write=False)
    return table


def sine(angle: int | Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """The sine of an angle, in 1/``ONE``."""
    return np.asarray(_sines()[np.asarray(angle) % TURN // _STEP])


def cosine(angle: int | Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """The cosine of an angle, in 1/``ONE``."""
    return sine(np.asarray(np.asarray(angle) + TURN // 4))


def tinted(colour: tuple[int, int, int], look: Look) -> tuple[int, int, int]:
    """A palette colour in the hue and lightness of a scene, by (1); 0..255."""
    c, s = (int(f(look.hue)) for f in (cosine, sine))
    numerator, denominator = _THIRD_ROOT
    across = (colour[2] - colour[1], colour[0] - colour[2], colour[1] - colour[0])
    values = (
        3 * denominator * c * own + denominator * (ONE - c) * sum(colour) + 3 * numerator * s * other
        for own, other in zip(colour, across, strict=True)
    )
    unit = 3 * denominator * ONE * 256
    red, green, blue = (min(255, max(0, (value * look.lightness + unit // 2) // unit)) for value in values)
    return red, green, blue


def brightness(
    texture: Texture,
    dx: Int[np.ndarray, "*#shape"],
    dy: Int[np.ndarray, "*#shape"],
    turned: Int[np.ndarray, "*#shape"] | int = 0,
) -> Int[np.ndarray, "*shape"]:
    """The factor by which a texture darkens, by (2).

    Args:
        texture: The texture.
        dx: To the right from the origin, in 1/256 pixel.
        dy: Downwards from the origin, in 1/256 pixel.
        turned: Rotation of the surface.

    Returns:
        In 1/256.
    """
    waves = []
    for number in range(1 if texture.pattern == "stripes" else 2):
        angle = np.asarray(turned + texture.angle + number * (TURN // 4))
        # 256 entries of the table make a wave. Positions are in 1/65536 of an entry: where 32 bits overflow, which
        # they do in large frames, whole waves are lost.
        along, down = (f(angle) * 1024 // texture.period for f in (cosine, sine))
        entry = (along * dx + (down * dy + texture.phases[number] * 256) >> 16) & 255
        waves.append(entry.astype(np.uint8))
    table = _darkness(len(waves))
    return 256 - (table[waves[0]] if len(waves) == 1 else table[waves[0]] + table[waves[1]])


@functools.cache
def _darkness(waves: int) -> Int[np.ndarray, " 256"]:
    """What one of ``waves`` waves takes from the light at each of its 256 phases."""
    table = ((sine(np.arange(256) * (TURN // 256)) + ONE) * DEPTH // (2 * ONE * waves)).astype(np.int32)
    table.setflags(write=False)
    return table
