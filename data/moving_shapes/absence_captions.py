"""The clause of a caption about the shape that is out of sight at times: from an ``Absence`` to English, and back."""

import dataclasses
import re

from helios_jax.data.moving_shapes.looks import Absence
from helios_jax.data.moving_shapes.paths import leaving_axis
from helios_jax.data.moving_shapes.world import COLOURS, DIRECTIONS, Description, Shape

KIND_STEMS = {"circle": "circle|disc|disk|ball", "square": "square", "triangle": "triangle", "star": "star"}
"""Words for each kind of shape, as a pattern."""

_CLAUSES = {
    "frame": (
        "; the {colour} {kind} leaves the frame {where} and returns after {frames} frames",
        "; {where} the {colour} {kind} leaves the frame and is back {frames} frames later",
    ),
    "bar": (
        "; the {colour} {kind} passes behind a dark bar",
        "; a dark bar hides the {colour} {kind} on its way",
    ),
}
_BORDERS = {"left": "on the left", "right": "on the right", "up": "at the top", "down": "at the bottom"}

_NAMED = rf"the (?P<colour>{'|'.join(COLOURS)}) (?P<kind>{'|'.join(KIND_STEMS.values())})"
_WHERE = rf"(?P<where>{'|'.join(_BORDERS.values())})"
_PATTERNS = (
    rf"\b{_NAMED} leaves the frame {_WHERE} and (?:returns|comes back) after (?P<frames>\d+) frames",
    rf"\b{_WHERE} {_NAMED} leaves the frame and (?:is|comes) back (?P<frames>\d+) frames later",
    rf"\b{_NAMED} passes behind a dark bar\b",
    rf"\ba dark bar hides {_NAMED} on its way\b",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaidAbsence:
    """What a caption says of the absent shape.

    Attributes:
        absence: How it gets out of sight.
        kind: A word for its kind.
        where: The border that it leaves by, as in captions; None behind a bar.
    """

    absence: Absence
    kind: str
    where: str | None

    def of(self, shapes: tuple[Shape, ...]) -> Absence:
        """The absence.

        Raises:
            ValueError: None of ``shapes`` can be the absent one.
        """
        for shape in shapes:
            if shape.colour == self.absence.colour and re.fullmatch(KIND_STEMS[shape.kind], self.kind):
                where = _BORDERS[_border(shape)]
                if self.where not in (None, where):
                    name = f"{shape.colour} {shape.kind}"
                    raise ValueError(f"a {name} that moves {shape.direction} leaves {where}, not {self.where}")
                return self.absence
        raise ValueError(f"no shape is a {self.absence.colour} {self.kind}, which should be out of sight at times")


def absence_clause(description: Description, form: int) -> str:
    """The clause in one of two forms; empty if all shapes stay in sight."""
    absence, shape = description.absence, description.absent
    if absence is None or shape is None:
        return ""
    return _CLAUSES[absence.beyond][form].format(
        colour=shape.colour, kind=shape.kind, where=_BORDERS[_border(shape)], frames=absence.frames
    )


def take_absence(text: str) -> tuple[SaidAbsence | None, str]:
    """What ``text``, in lower case, says of an absent shape, and the text without it.

    Raises:
        ValueError: It names more than one.
    """
    found = [match for pattern in _PATTERNS for match in re.finditer(pattern, text)]
    if len(found) > 1:
        raise ValueError(f"one shape can leave the frame or pass behind a bar, found {len(found)} in {text!r}")
    if not found:
        return None, text
    said = found[0].groupdict()
    if "frames" in said:
        absence = Absence(colour=said["colour"], beyond="frame", frames=int(said["frames"]))
    else:
        absence = Absence(colour=said["colour"], beyond="bar")
    rest = text[: found[0].start()] + text[found[0].end() :]
    return SaidAbsence(absence=absence, kind=said["kind"], where=said.get("where")), rest


def _border(shape: Shape) -> str:
    """The border at which the shape leaves the frame."""
    axis = leaving_axis(shape)
    return (("left", "right"), ("up", "down"))[axis][DIRECTIONS[shape.direction][axis] > 0]
