"""The world: what a scene is, in two styles. ``paths`` says where everything is at frame t.

Scenes of the plain style (``plain``) have no ``Look``, those of the textured style (``textured``) have one.
"""

import dataclasses
from collections.abc import Collection

from helios_jax.data.moving_shapes.looks import ABSENCES, Absence, Look

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
    """What a caption says.

    Attributes:
        shapes: Front to back.
        background: One of ``BACKGROUNDS``.
        lighting: One of ``LIGHTS``.
        absence: Which shape is out of sight at times; None: none is.

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


def _check(name: str, value: str, options: Collection[str]) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")
