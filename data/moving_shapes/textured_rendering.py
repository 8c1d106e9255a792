"""Painting in the second style: textured backgrounds, textured and rotating shapes, and the bar; in integers.

The straight sides of a shape are as far from its centroid as those of a regular polygon, so with the unit normals n_k
of its sides at the angle of the shape, its apothem d and half width r, the distance of a pixel x from the outline is

    max_k n_k . x - d r,   for a star the second largest of them,                        (1)

and coverage follows from it as in ``rendering``.
"""

import numpy as np

from helios_jax.data.moving_shapes.looks import BAR_COLOUR, ONE, TURN, Look, Texture, brightness, cosine, sine, tinted
from helios_jax.data.moving_shapes.paths import half_width, reach
from helios_jax.data.moving_shapes.sight import bar_sides
from helios_jax.data.moving_shapes.world import COLOURS, UNIT, Colour, Scene
from helios_jax.typing import Int, UInt8

# Number of sides, angle of the first normal (downwards is a quarter turn), and apothem in 1/65536 of the half width.
_SIDES = {
    "square": (4, 0, 53740),
    "triangle": (3, TURN // 4, 37837),
    "star": (5, -(TURN // 4), 21293),
}


def paint_ground(
    picture: Int[np.ndarray, "{height} {width} 3"], look: Look, height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """The background in full light, from the same without its texture."""
    dx, dy = (((2 * np.arange(size) + 1 - size) * (UNIT // 2)).astype(np.int32) for size in (width, height))
    factor = brightness(look.ground, dx[None, :], dy[:, None])[..., None]
    return (picture * factor + UNIT // 2 >> 8).astype(np.uint8)


def paint_scene(
    canvas: UInt8[np.ndarray, "F H W 3"],
    scene: Scene,
    look: Look,
    paths: Int[np.ndarray, "shapes F 2"],
    times: Int[np.ndarray, " F"],
) -> None:
    """Paints the bar and all shapes into frames of the background.

    Args:
        canvas: The frames, in full light.
        scene: The scene.
        look: Its look.
        paths: ``centres`` of its shapes.
        times: Numbers of the frames.
    """
    height, width = canvas.shape[1:3]
    side, shapes = min(height, width), scene.description.shapes
    bar = bar_sides(scene, height, width)
    for number in reversed(range(len(shapes))):  # the first is in front
        shape = shapes[number]
        angles = (look.angles[number] + look.spins[number] * times) % TURN
        radius, around = half_width(shape, side), reach(shape, side, rotates=True)
        colour = tinted(COLOURS[shape.colour], look)
        _paint(canvas, shape.kind, colour, look.textures[number], paths[number], angles, radius, around)
        if bar is not None and shape is scene.description.absent:
            _paint_bar(canvas, tinted(BAR_COLOUR, look), *bar)


def rotated_coverage(
    kind: str,
    dx: Int[np.ndarray, "F 1 columns"],
    dy: Int[np.ndarray, "F rows 1"],
    radius: int,
    angles: Int[np.ndarray, " F"],
) -> Int[np.ndarray, "F rows columns"]:
    """How much of the pixel at (dx, dy) from its centroid a shape covers, by (1).

    Args:
        kind: The shape.
        dx: To the right, in 1/256 pixel.
        dy: Downwards, in 1/256 pixel.
        radius: Half the width of the shape at the angle 0, in 1/256 pixel.
        angles: Its rotation, in 1/65536 turn, clockwise.

    Returns:
        0 .. 256.
    """
    if kind == "circle":
        # The square root of IEEE 754 is correctly rounded, so its floor is exact too.
        distance = np.sqrt((dx * dx + dy * dy).astype(np.float64)).astype(np.int32) - radius
        return np.clip(UNIT // 2 - distance, 0, UNIT)
    sides, first, apothem = _SIDES[kind]
    offset = apothem * radius >> 16
    largest = second = np.array(np.iinfo(np.int32).min, np.int32)
    for number in range(sides):
        normal = angles[:, None, None] + first + number * TURN // sides
        line = cosine(normal) * dx + sine(normal) * dy
        if kind == "star":
            second = np.maximum(second, np.minimum(largest, line))
        largest = np.maximum(largest, line)
    distance = (second if kind == "star" else largest) // ONE - offset
    return np.clip(UNIT // 2 - distance, 0, UNIT)


def _paint(
    canvas: np.ndarray,
    kind: str,
    colour: Colour,
    texture: Texture,
    path: np.ndarray,
    angles: np.ndarray,
    radius: int,
    around: int,
) -> None:
    """Paints one shape into all frames, each within a box of whole pixels around it."""
    extent = 2 * around // UNIT + 2
    frame_size = np.array([canvas.shape[2], canvas.shape[1]])
    corners = (path - around) // UNIT  # [F, 2]
    seen = np.flatnonzero(((corners < frame_size) & (corners + extent > 0)).all(1))
    inside = ((corners >= 0) & (corners + extent <= frame_size)).all(1)[seen]
    path, angles, corners = path[seen], angles[seen], corners[seen]
    pixels = corners[:, :, None] + np.arange(extent)  # [F, 2, extent]
    offsets = (pixels * UNIT + UNIT // 2 - path[:, :, None]).astype(np.int32)
    dx, dy = offsets[:, 0, None, :], offsets[:, 1, :, None]
    alpha = rotated_coverage(kind, dx, dy, radius, angles)[..., None]
    factor = brightness(texture, dx, dy, angles[:, None, None])[..., None]
    paint = np.array(colour, np.int32) * factor + UNIT // 2 >> 8
    whole = np.flatnonzero(inside)
    box = seen[whole][:, None, None], pixels[whole, 1, :, None], pixels[whole, 0, None, :]
    canvas[box] = _mixed(canvas[box], paint[whole], alpha[whole])
    for number in np.flatnonzero(~inside):
        (left, top), (columns, rows) = corners[number], frame_size
        cut = slice(max(0, -top), min(extent, rows - top)), slice(max(0, -left), min(extent, columns - left))
        part = canvas[seen[number], max(0, top) : top + extent, max(0, left) : left + extent]
        part[...] = _mixed(part, paint[number][cut], alpha[number][cut])


def _mixed(under: np.ndarray, paint: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``paint`` over ``under``, where it covers ``alpha`` of each pixel."""
    return under + ((paint - under.astype(np.int32)) * alpha + UNIT // 2 >> 8)


def _paint_bar(canvas: np.ndarray, colour: Colour, axis: int, begin: int, end: int) -> None:
    """Paints the bar into all frames: it covers whole pixels."""
    lines = slice(begin // UNIT, end // UNIT)
    part = canvas[:, :, lines] if axis == 0 else canvas[:, lines]
    part[...] = colour
