"""Rendering of scenes in integers: the same bytes on every platform.

A shape is a set of half planes or a disc; d is the signed distance of a pixel's centre to its edge. With
distances in 1/256 pixel, a pixel is covered by

    a = clip(128 - d, 0, 256)   (in 1/256)                                               (1)

and painted, back to front, c <- c + (colour - c) a / 256. Light then multiplies every channel.
A star is the set of points inside at least four of the five lines through the sides of a pentagon. Scenes with a
``Look`` are painted by ``textured_rendering``.
"""

import functools
from collections.abc import Iterator

import numpy as np

from helios_jax.data.moving_shapes.looks import tinted
from helios_jax.data.moving_shapes.paths import centres, half_width
from helios_jax.data.moving_shapes.textured_rendering import paint_ground, paint_scene
from helios_jax.data.moving_shapes.world import BACKGROUNDS, COLOURS, LIGHTS, UNIT, Colour, Scene
from helios_jax.typing import Int, UInt8

# Outward normals (x, y) and offset of each line, in 1/65536: of a unit length, and of the half width.
_SQUARE = ((65536, 0, 53740), (-65536, 0, 53740), (0, 65536, 53740), (0, -65536, 53740))
_TRIANGLE = ((0, 65536, 56756), (56756, -32768, 28378), (-56756, -32768, 28378))
_STAR = (
    (0, -65536, 14714),
    (62328, -20252, 19261),
    (38521, 53020, 26617),
    (-38521, 53020, 26617),
    (-62328, -20252, 19261),
)


def render(scene: Scene, frames: int | range, height: int, width: int) -> UInt8[np.ndarray, "F {height} {width} 3"]:
    """Draws ``frames`` (a number from the start, or a range) of ``scene`` as RGB.

    Raises:
        ValueError: ``height`` or ``width`` is not a positive multiple of 8, or a frame number is negative.
    """
    frames = range(frames) if isinstance(frames, int) else frames
    if height < 8 or width < 8 or height % 8 or width % 8:
        raise ValueError(f"height and width must be positive multiples of 8, got {height} x {width}")
    if len(frames) == 0 or min(frames) < 0:
        raise ValueError(f"need at least one frame, counted from 0, got {frames}")
    paths = centres(scene, frames, height, width)
    if scene.look is None:
        picture = backdrop(scene.description.background, height, width).astype(np.uint8)
    else:
        top, bottom = (tinted(colour, scene.look) for colour in BACKGROUNDS[scene.description.background])
        picture = paint_ground(fade(top, bottom, height, width), scene.look, height, width)
    canvas = np.repeat(picture[None], len(frames), axis=0)
    if scene.look is None:
        for shape, path in reversed(list(zip(scene.description.shapes, paths, strict=True))):  # the first is in front
            _paint(canvas, shape.kind, COLOURS[shape.colour], path, half_width(shape, min(height, width)))
    else:
        paint_scene(canvas, scene, scene.look, paths, np.array(frames))
    lit = canvas.astype(np.uint16)  # 255 * 256 + 128 fits
    lit *= light(scene.description.lighting, height, width).astype(np.uint16)
    lit += 128
    lit >>= 8
    return lit.astype(np.uint8)


def backdrop(background: str, height: int, width: int) -> Int[np.ndarray, "{height} {width} 3"]:
    """The background of that name in full light, 0..255."""
    return fade(*BACKGROUNDS[background], height, width)


def fade(top: Colour, bottom: Colour, height: int, width: int) -> Int[np.ndarray, "{height} {width} 3"]:
    """Colours of the rows between those of the first and the last."""
    row = np.arange(height, dtype=np.int32)[:, None, None]
    rows = (np.array(top, np.int32) * (height - 1 - row) + np.array(bottom, np.int32) * row + (height - 1) // 2) // (
        height - 1
    )
    return np.repeat(rows, width, axis=1)


def light(lighting: str, height: int, width: int) -> Int[np.ndarray, "{height} {width} 1"]:
    """The factor of that lighting at every pixel, 256 for full light."""
    top_left, top_right, bottom_left, bottom_right = LIGHTS[lighting]
    y = np.arange(height)[:, None, None]
    x = np.arange(width)[None, :, None]
    left = top_left * (height - 1 - y) + bottom_left * y
    right = top_right * (height - 1 - y) + bottom_right * y
    return (left * (width - 1 - x) + right * x) // ((height - 1) * (width - 1))


def coverage(
    kind: str, dx: Int[np.ndarray, "*#shape"], dy: Int[np.ndarray, "*#shape"], radius: int
) -> Int[np.ndarray, "*shape"]:
    """How much of the pixel at (dx, dy) from its centre a shape covers, by (1).

    Args:
        kind: The shape.
        dx: To the right, in 1/256 pixel.
        dy: Downwards, in 1/256 pixel.
        radius: Half the width of the shape, in 1/256 pixel.

    Returns:
        0 .. 256.
    """
    if kind == "circle":
        # The square root of IEEE 754 is correctly rounded, so its floor is exact too.
        distance = np.sqrt((dx * dx + dy * dy).astype(np.float64)).astype(np.int64) - radius
    elif kind == "star":
        # The second largest distance: inside at least four of the five lines.
        largest = distance = np.array(np.iinfo(np.int64).min)
        for line in _distances(_STAR, dx, dy, radius):
            distance = np.maximum(distance, np.minimum(largest, line))
            largest = np.maximum(largest, line)
    else:
        lines = _distances(_SQUARE if kind == "square" else _TRIANGLE, dx, dy, radius)
        distance = functools.reduce(np.maximum, lines)
    return np.clip(UNIT // 2 - distance, 0, UNIT).astype(np.int32)


def _distances(lines: tuple, dx: np.ndarray, dy: np.ndarray, radius: int) -> Iterator[np.ndarray]:
    """Signed distances to the lines, outside positive."""
    for nx, ny, offset in lines:
        yield ((nx * dx - offset * radius) + ny * dy) >> 16


def _paint(canvas: np.ndarray, kind: str, colour: Colour, path: np.ndarray, radius: int) -> None:
    """Paints one shape into all frames, each within a box of whole pixels around it."""
    extent = 2 * radius // UNIT + 2
    frame_size = np.array([canvas.shape[2], canvas.shape[1]])
    corners = np.minimum((path - radius) // UNIT, frame_size - extent)  # [F, 2]
    columns, rows = (corners[:, axis, None] + np.arange(extent) for axis in (0, 1))
    dx, dy = (
        pixels * UNIT + UNIT // 2 - path[:, axis, None] for axis, pixels in enumerate((columns, rows))
    )  # from the centre of the shape to the centres of pixels
    alpha = coverage(kind, dx[:, None, :], dy[:, :, None], radius)[..., None]
    box = np.arange(len(path))[:, None, None], rows[:, :, None], columns[:, None, :]
    under = canvas[box].astype(np.int32)
    canvas[box] = under + ((np.array(colour, np.int32) - under) * alpha + UNIT // 2 >> 8)
