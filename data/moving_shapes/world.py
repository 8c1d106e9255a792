"""The world: what a scene is, how scenes are drawn, and where everything is at frame t.

Lengths are in units of the shorter side of the frame. A shape of half width r starts at the fraction u of
its room L = side - 2r along each axis and moves with constant velocity v between the borders, which mirror
it. Its centre at any frame follows without earlier frames:

    y(t) = u L + v t,   m = y(t) mod 2L,   x(t) = r + L - |m - L|.                       (1)

A shape that leaves the frame (``Absence``) has more room on one side: twice its reach, which takes it out of sight,
and half of the way that it goes in the frames of its absence,

    E = 2 r + v n / 2,   m = (y(t) + E) mod 2 (L + E),   x(t) = r - E + (L + E) - |m - (L + E)|,        (2)

here for the low border. In a scene with a ``Look`` shapes rotate, so r in (1) and (2) is the radius of the circle
around the shape. Everything is computed in integers of 1/256 pixel and is therefore equal on every platform.
"""

import dataclasses
import itertools
from collections.abc import Collection, Sequence

import numpy as np

from helios_jax.data.draws import Draws
from helios_jax.data.moving_shapes.looks import ABSENCES, CIRCUMRADII, Absence, Look
from helios_jax.typing import Int

Colour = tuple[int, int, int]

KINDS: dict[str, float] = {"circle": 3.14, "square": 2.69, "triangle": 1.73, "star": 1.24}
"""Areas, in squares of half the width."""

COLOURS: dict[str, Colour] = {
    "red": (225, 30, 30),
    "orange": (245, 125, 15),
    "yellow": (245, 225, 30),
    "green": (25, 150, 50),
    "cyan": (30, 200, 215),
    "blue": (35, 60, 225),
    "purple": (150, 40, 190),
}
"""Shapes are saturated ..."""

PLAIN: dict[str, Colour] = {
    "grey": (140, 140, 140),
    "cream": (235, 215, 155),
    "pale blue": (150, 185, 235),
    "pale green": (160, 215, 155),
    "pale pink": (240, 165, 190),
}
"""... and backgrounds are not."""

BACKGROUNDS: dict[str, tuple[Colour, Colour]] = {
    **{name: (colour, colour) for name, colour in PLAIN.items()},
    **{f"{top} to {bottom}": (PLAIN[top], PLAIN[bottom]) for top in PLAIN for bottom in PLAIN if top != bottom},
}
"""Colours of the first and the last row; those between are interpolated."""

LIGHTS: dict[str, tuple[int, int, int, int]] = {
    "bright": (256, 256, 256, 256),
    "dim": (140, 140, 140, 140),
    "left": (256, 112, 256, 112),
    "right": (112, 256, 112, 256),
    "above": (256, 256, 112, 112),
    "below": (112, 112, 256, 256),
}
"""Brightness in 1/256 at the corners (top left, top right, bottom left, bottom right); bilinear between."""

SIZES: dict[str, int] = {"small": 26, "medium": 38, "large": 54}
"""Half the width, in 1/256 of the shorter side of the frame."""

SPEEDS: dict[str, int] = {"slow": 1, "medium": 2, "fast": 4}
"""Way per frame, in 1/256 of the shorter side of the frame."""

DIRECTIONS: dict[str, tuple[int, int]] = {
    "right": (1, 0),
    "upper right": (1, -1),
    "up": (0, -1),
    "upper left": (-1, -1),
    "left": (-1, 0),
    "lower left": (-1, 1),
    "down": (0, 1),
    "lower right": (1, 1),
}
"""Signs of the velocity along x (to the right) and y (downwards), at the start."""

UNIT = 256
"""Positions are integers of 1/256 pixel."""

NUM_PHRASINGS = 64
"""Numbers of phrasings that captions choose their words from."""

START_STEPS = 2**20
"""Starts are fractions of the room in this unit."""

_HALF_ROOT = (46341, 65536)  # 2 ** -0.5 as a fraction: diagonal moves have the speed of straight ones
_TRIES = 24  # draws of the starts
_ROUNDS = 32  # draws of the directions, if shapes overlap at the start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What a caption says of one shape.

    Attributes:
        kind: One of ``KINDS``.
        colour: One of ``COLOURS``.
        size: One of ``SIZES``.
        speed: One of ``SPEEDS``.
        direction: One of ``DIRECTIONS``: where it moves to until it meets a border for the first time.

    Raises:
        ValueError: An attribute has another value.
    """

    kind: str
    colour: str
    size: str
    speed: str
    direction: str

    def __post_init__(self) -> None:
        _check("kind", self.kind, KINDS)
        _check("colour", self.colour, COLOURS)
        _check("size", self.size, SIZES)
        _check("speed", self.speed, SPEEDS)
        _check("direction", self.direction, DIRECTIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a caption says: ``shapes`` (front to back), names of ``BACKGROUNDS`` and ``LIGHTS``, and who is away at times.

    Raises:
        ValueError: There is no shape, two have one colour, a name is unknown, or an absence is impossible.
    """

    shapes: tuple[Shape, ...]
    background: str
    lighting: str
    absence: Absence | None = None

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError("a scene needs at least one shape")
        colours = [shape.colour for shape in self.shapes]
        if len(set(colours)) < len(colours):
            raise ValueError(f"the shapes of a scene must differ in colour, got {', '.join(colours)}")
        _check("background", self.background, BACKGROUNDS)
        _check("lighting", self.lighting, LIGHTS)
        if self.absence is not None:
            _check("colour of the absent shape", self.absence.colour, colours)
            if self.absence.beyond == "frame" and self.absence.frames not in ABSENCES:
                lengths = ", ".join(map(str, ABSENCES))
                raise ValueError(f"a shape leaves the frame for {lengths} frames, not {self.absence.frames}")

    @property
    def absent(self) -> Shape | None:
        """The shape that is away at times."""
        found = [shape for shape in self.shapes if self.absence and shape.colour == self.absence.colour]
        return found[0] if found else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A video of this world, of any length and size.

    Attributes:
        description: What its caption says.
        starts: Positions at frame 0 for each shape, (x, y) in 1/2^20 of the room along the axis.
        phrasing: Which words the caption uses, in [0, ``NUM_PHRASINGS``).
        look: What no caption says; None: plain colours, and shapes that do not rotate.

    Raises:
        ValueError: A value is out of range, the number of starts is not that of the shapes, or the look does not
            fit the description.
    """

    description: Description
    starts: tuple[tuple[int, int], ...]
    phrasing: int = 0
    look: Look | None = None

    def __post_init__(self) -> None:
        fractions = [fraction for start in self.starts for fraction in start]
        if len(self.starts) != len(self.description.shapes) or not all(0 <= f <= START_STEPS for f in fractions):
            raise ValueError(
                f"need one start (x, y) within [0, {START_STEPS}] for each of {len(self.description.shapes)} "
                f"shapes, got {self.starts}"
            )
        if not 0 <= self.phrasing < NUM_PHRASINGS:
            raise ValueError(f"phrasing must lie in [0, {NUM_PHRASINGS}), got {self.phrasing}")
        absence, look = self.description.absence, self.look
        if look is None:
            if absence is not None:
                raise ValueError("a scene whose shapes are away at times needs a look")
        elif len(look.textures) != len(self.starts):
            raise ValueError(f"need a texture for each of {len(self.starts)} shapes, got {len(look.textures)}")
        elif (look.bar is not None) != (absence is not None and absence.beyond == "bar"):
            raise ValueError("a scene has a bar if and only if a shape passes behind it")


def sample_scene(seed: int, index: int, *, num_shapes: int | None = None) -> Scene:
    """Draws scene ``index`` of the world ``seed``.

    Attributes are uniform and independent, with these exceptions. The colours of a scene differ. Smaller shapes are
    in front of larger ones, so that none is hidden. A shape starts in the half of its room that it moves away
    from, so that its direction can be seen before it turns. Starts are drawn several times, and the draw in which
    shapes overlap least is used; directions that leave no room for all shapes are drawn again.

    Args:
        seed: The world.
        index: The scene; scenes are independent of each other.
        num_shapes: Shapes in it; None draws 1, 2 or 3.

    Raises:
        ValueError: More shapes than colours, or fewer than one.
    """
    draws = Draws(seed, index)
    count = 1 + draws.below(3) if num_shapes is None else num_shapes
    if not 1 <= count <= len(COLOURS):
        raise ValueError(f"num_shapes must lie in [1, {len(COLOURS)}] (colours differ within a scene), got {count}")
    kinds, sizes, speeds = ([draws.choice(tuple(options)) for _ in range(count)] for options in (KINDS, SIZES, SPEEDS))
    colours, background = draws.sample(tuple(COLOURS), count), draws.choice(tuple(BACKGROUNDS))
    lighting, phrasing = draws.choice(tuple(LIGHTS)), draws.below(NUM_PHRASINGS)
    order = sorted(range(count), key=lambda i: KINDS[kinds[i]] * SIZES[sizes[i]] ** 2)

    rounds = 0
    while True:
        rounds += 1
        directions = [draws.choice(tuple(DIRECTIONS)) for _ in range(count)]
        shapes = tuple(
            Shape(kind=kinds[i], colour=colours[i], size=sizes[i], speed=speeds[i], direction=directions[i])
            for i in order
        )
        tries = [tuple(start_in_room(draws, shape) for shape in shapes) for _ in range(_TRIES if count > 1 else 1)]
        overlaps = _overlaps(shapes, np.array(tries, np.int64))
        best = min(range(len(tries)), key=overlaps.__getitem__)  # the first if several are equal
        if overlaps[best][0] == 0 or rounds == _ROUNDS:
            break
    description = Description(shapes=shapes, background=background, lighting=lighting)
    return Scene(description=description, starts=tries[best], phrasing=phrasing)


def half_width(shape: Shape, side: int) -> int:
    """Half the width of ``shape`` in a frame whose shorter side is ``side`` pixels, in 1/256 pixel."""
    return SIZES[shape.size] * side


def reach(shape: Shape, side: int, rotates: bool) -> int:
    """The distance to the border at which ``shape`` turns, in 1/256 pixel."""
    return half_width(shape, side) * CIRCUMRADII[shape.kind] // 256 if rotates else half_width(shape, side)


def centres(scene: Scene, frames: range, height: int, width: int) -> Int[np.ndarray, "shapes F 2"]:
    """The centres (x, y) of all shapes by (1) and (2), in 1/256 pixel from the top left corner of the frame."""
    starts, t = np.array(scene.starts, np.int64), np.array(frames, np.int64)
    shapes, absence, side = scene.description.shapes, scene.description.absence, min(height, width)
    away = absence.frames if absence and absence.beyond == "frame" else 0
    return np.stack(
        [
            path(shape, start, t, height, width, reach(shape, side, scene.look is not None), away * is_absent)
            for shape, start in zip(shapes, starts, strict=True)
            for is_absent in (shape is scene.description.absent,)
        ]
    )


def way_along(shape: Shape, side: int, frames: int | Int[np.ndarray, " F"]) -> int | Int[np.ndarray, " F"]:
    """The way in ``frames`` frames along each axis that the shape moves on, in 1/256 pixel."""
    way = SPEEDS[shape.speed] * side * frames
    return way * _HALF_ROOT[0] // _HALF_ROOT[1] if all(DIRECTIONS[shape.direction]) else way


def leaving_axis(shape: Shape) -> int:
    """The axis on which a shape leaves the frame or passes behind a bar: 0 (x) if it moves along it, else 1."""
    return 0 if DIRECTIONS[shape.direction][0] else 1


def path(
    shape: Shape,
    starts: Int[np.ndarray, "*T 2"],
    frames: Int[np.ndarray, " F"],
    height: int,
    width: int,
    radius: int,
    away: int = 0,
) -> Int[np.ndarray, "*T F 2"]:
    """``centres`` of one shape, from each of the starts.

    Args:
        shape: The shape.
        starts: See ``Scene``.
        frames: Numbers of frames.
        height: Rows of the frame.
        width: Columns of the frame.
        radius: Its ``reach``.
        away: Frames for which it leaves the frame, at the border that it moves to at the start; 0: it does not.
    """
    side, signs = min(height, width), DIRECTIONS[shape.direction]
    way = way_along(shape, side, frames)
    axes = []
    for axis, (sign, extent) in enumerate(zip(signs, (width, height), strict=True)):
        room = extent * UNIT - 2 * radius
        position = starts[..., axis, None] * room // START_STEPS + sign * way
        leaves = away > 0 and axis == leaving_axis(shape)
        beyond = 2 * radius + int(way_along(shape, side, away)) // 2 if leaves else 0
        low, room = beyond if sign < 0 else 0, room + beyond
        axes.append(radius - low + room - abs((position + low) % (2 * room) - room))
    return np.stack(axes, axis=-1)


def start_in_room(draws: Draws, shape: Shape) -> tuple[int, int]:
    """A position in the half of the room that the shape moves away from; anywhere along an axis it does not move on."""
    position = []
    for sign in DIRECTIONS[shape.direction]:
        if sign == 0:
            position.append(draws.below(START_STEPS))
        else:
            near = draws.below(START_STEPS // 2)
            position.append(near if sign > 0 else START_STEPS - near)
    x, y = position
    return x, y


def _overlaps(shapes: tuple[Shape, ...], starts: Int[np.ndarray, "T shapes 2"]) -> list[tuple[int, int]]:
    """``touches`` of shapes that do not rotate, in 99 frames of 64 x 64."""
    side, frames = 64, np.arange(99)
    radii = [half_width(shape, side) for shape in shapes]
    paths = [path(shape, starts[:, i], frames, side, side, radii[i]) for i, shape in enumerate(shapes)]
    return touches(paths, radii)


def touches(paths: Sequence[Int[np.ndarray, "T F 2"]], radii: Sequence[int]) -> list[tuple[int, int]]:
    """For each of T draws: pairs that touch at the start, and touches in F frames (the first 25 count fourfold)."""
    at_start = total = np.zeros(len(paths[0]), np.int64)
    for (one, radius), (other, other_radius) in itertools.combinations(zip(paths, radii, strict=True), 2):
        touching = ((one - other) ** 2).sum(-1) < (radius + other_radius) ** 2
        at_start = at_start + touching[:, 0]
        total = total + touching.sum(-1) + 3 * touching[:, :25].sum(-1)
    return list(zip(at_start.tolist(), total.tolist(), strict=True))


def _check(name: str, value: str, options: Collection[str]) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")
