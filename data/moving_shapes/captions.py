"""Captions: from scenes to English, and back.

A caption states every attribute of its ``Description`` in one of 64 ways. The parser reads these and similar
sentences, so prompts written by hand can be scored as well: one clause per shape that begins with "a" or "an" and
names size, colour, kind, speed and direction; the background; the light. If a shape is out of sight at times, a clause
says which one and why: "the red star passes behind a dark bar", or "the red star leaves the frame on the left and
returns after 48 frames". Hue, lightness, textures and rotation (``looks``) are never mentioned.
"""

import re
from collections.abc import Iterable

from helios_jax.data.moving_shapes.absence_captions import KIND_STEMS, absence_clause, take_absence
from helios_jax.data.moving_shapes.looks import ABSENCES, Absence
from helios_jax.data.moving_shapes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    KINDS,
    LIGHTS,
    NUM_PHRASINGS,
    PLAIN,
    SIZES,
    SPEEDS,
    Description,
    Scene,
    Shape,
)

_ADVERBS = {"slow": "slowly", "medium": "steadily", "fast": "quickly"}

_CLAUSES = (
    "a {size} {colour} {kind} moves {adverb} {direction}",
    "a {size} {colour} {kind} drifts {direction} at a {speed} pace",
    "a {adverb} moving {size} {colour} {kind} heads {direction}",
    "a {colour} {kind} of {size} size glides {direction} {adverb}",
)

_LAYOUTS = (
    "{Shapes}. {Bounce}. The background {is_backed}. The light {is_lit}.",
    "On {a_backdrop} and {in_light}, {shapes}. {Bounce}.",
    "The light {is_lit}. The background {is_backed}. {Shapes}. {Bounce}.",
    "{Shapes}, all of it on {a_backdrop}, {in_light}. {Bounce}.",
)

_BOUNCES = (
    ("It bounces off the borders", "They bounce off the borders, and those named first pass in front"),
    ("At the edges it bounces back", "At the edges they bounce back; the earlier named are in front of the later"),
)

_DIRECTION_WORDS = (
    ("to the {}", "{}wards", "diagonally {} and to the {}"),
    ("towards the {}", "{}", "towards the {} {}"),
)

_SPEED_STEMS = {
    "slow": r"slow(?:ly)?|gently",
    "medium": r"steady|steadily|(?:medium|moderate)(?=[ -](?:moving|pace|speed))",
    "fast": r"fast|quick(?:ly)?|rapid(?:ly)?",
}
_SIZE_STEMS = {
    "small": r"small|tiny|little",
    "medium": r"(?:medium|mid)(?![ -](?:moving|pace|speed))",
    "large": r"large|big|huge",
}
_UP_DOWN = {"up": "up|upwards?|upper", "down": "down|downwards?|lower"}
_LEFT_RIGHT = {"left": "left(?:wards?)?", "right": "right(?:wards?)?"}

_PLAIN = "|".join(sorted(PLAIN, key=lambda name: len(name), reverse=True))
_BACKGROUND_PATTERNS = (
    rf"background\b[^.;:]*?\bfrom ({_PLAIN})(?: at the top)? to ({_PLAIN})(?: at the bottom)?",
    rf"({_PLAIN}) to ({_PLAIN}) background",
    rf"(?:plain )?({_PLAIN}) background",
    rf"background (?:is )?(?:a )?(?:plain )?({_PLAIN})\b",
)
_LIGHT_PATTERNS = (
    r"\b(?:lit|light|lighting)\b[^.;:,]*? from (?:the )?(left|right|above|top|below|bottom)\b",
    r"\b(bright|dim)(?:ly lit\b| light(?:ing)?\b)",
    r"\blight(?:ing)? is (bright|dim)\b",
)
_BOUNCING = r"\bbounc\w*(?: back)?(?: (?:off|from|at|against))?(?: the)?(?: \w+)? (?:borders?|edges?|walls?)\b"


def caption(scene: Scene) -> str:
    """Describes ``scene``, in the words that its ``phrasing`` chooses."""
    return _text(scene.description, scene.phrasing)


def _text(description: Description, words: int) -> str:
    """The caption in one of ``NUM_PHRASINGS`` wordings."""
    words, layout = divmod(words, len(_LAYOUTS))
    words, clause = divmod(words, len(_CLAUSES))
    words, bounce = divmod(words, len(_BOUNCES))
    clauses = [
        _clause(shape, _CLAUSES[(clause + number) % len(_CLAUSES)], _DIRECTION_WORDS[words % 2])
        for number, shape in enumerate(description.shapes)
    ]
    shapes = ", and ".join(filter(None, (", ".join(clauses[:-1]), clauses[-1])))
    top, _, bottom = description.background.partition(" to ")
    fade = f"from {top} at the top to {bottom} at the bottom"
    even = description.lighting in ("bright", "dim")
    side = description.lighting if description.lighting in ("above", "below") else f"the {description.lighting}"
    return _LAYOUTS[layout].format(
        shapes=shapes,
        Shapes=shapes[0].upper() + shapes[1:],
        Bounce=_BOUNCES[bounce][len(clauses) > 1] + absence_clause(description, bounce),
        is_backed=f"fades {fade}" if bottom else f"is plain {top}",
        a_backdrop=f"a background fading {fade}" if bottom else f"a plain {top} background",
        is_lit=f"is {description.lighting}" if even else f"comes from {side}",
        in_light=f"in {description.lighting} light" if even else f"lit from {side}",
    )


def vocabulary(*, absences: bool = False) -> list[str]:
    """All words and punctuation of captions, in lower case and in order.

    Args:
        absences: Include captions in which a shape leaves the frame or passes behind a bar.
    """
    colours = tuple(COLOURS)
    texts = []
    for phrasing in range(NUM_PHRASINGS):
        for turn in range(len(BACKGROUNDS)):  # the longest of the lists, so that every value takes a turn
            shapes = tuple(
                Shape(
                    kind=_turn(KINDS, turn),
                    colour=colours[(turn + number) % len(colours)],
                    size=_turn(SIZES, turn),
                    speed=_turn(SPEEDS, turn),
                    direction=_turn(DIRECTIONS, turn),
                )
                for number in range(1 + turn % 2)
            )
            absent = [None]
            if absences:
                name, frames = shapes[0].colour, ABSENCES[turn % len(ABSENCES)]
                absent = [Absence(colour=name, beyond="frame", frames=frames), Absence(colour=name, beyond="bar")]
            for absence in absent:
                names = {"background": _turn(BACKGROUNDS, turn), "lighting": _turn(LIGHTS, turn)}
                texts.append(_text(Description(shapes=shapes, absence=absence, **names), phrasing))
    return sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(texts).lower())))


def parse_caption(text: str) -> Description:
    """Reads what ``text`` says of a scene; ``parse_caption(caption(scene)) == scene.description``.

    Raises:
        ValueError: Something is missing, said twice, or not of this world.
    """
    rest = re.sub(r"\s+", " ", text.lower())
    absence, rest = take_absence(rest)
    lighting, rest = _take(rest, _LIGHT_PATTERNS, "light", "'bright light', 'dim light' or 'lit from the left'")
    lighting = {"top": "above", "bottom": "below"}.get(lighting, lighting)
    background, rest = _take(rest, _BACKGROUND_PATTERNS, "background", f"'on a ... background' with {', '.join(PLAIN)}")
    if background not in BACKGROUNDS:
        raise ValueError(f"a background cannot fade from {background}: take two colours of {', '.join(PLAIN)}")
    rest = re.sub(_BOUNCING, "", rest)
    clauses: list[str] = []
    for clause in re.split(r"\b(?=an? )", rest):
        # A clause without a shape belongs to the shape before it: "a red star; it moves at | a slow pace".
        if _found(clause, KIND_STEMS):
            clauses.append(clause)
        elif clauses:
            clauses[-1] += clause
    if not clauses:
        raise ValueError(f"no shape found in {text!r}: name one, such as 'a small red circle' ({', '.join(KINDS)})")
    shapes = tuple(_shape(clause.strip(" ,.;")) for clause in clauses)
    return Description(
        shapes=shapes, background=background, lighting=lighting, absence=absence.of(shapes) if absence else None
    )


def _clause(shape: Shape, clause: str, directions: tuple[str, str, str]) -> str:
    sideways, upright, diagonal = directions
    across, down = DIRECTIONS[shape.direction]
    horizontal, vertical = "right" if across > 0 else "left", "up" if down < 0 else "down"
    if not down:
        direction = sideways.format(horizontal)
    elif not across:
        direction = upright.format(vertical)
    elif diagonal.startswith("towards"):
        direction = diagonal.format("upper" if down < 0 else "lower", horizontal)
    else:
        direction = diagonal.format(vertical, horizontal)
    text = clause.format(
        size=shape.size,
        colour=shape.colour,
        kind=shape.kind,
        speed=shape.speed,
        adverb=_ADVERBS[shape.speed],
        direction=direction,
    )
    return re.sub(r"^a (?=[aeiou])", "an ", text)


def _turn(options: Iterable[str], number: int) -> str:
    names = tuple(options)
    return names[number % len(names)]


def _take(text: str, patterns: tuple[str, ...], what: str, example: str) -> tuple[str, str]:
    """The value that the patterns find, and the text without it."""
    found: list[str] = []

    def keep(match: re.Match) -> str:
        found.append(" to ".join(match.groups()))
        return ""

    for pattern in patterns:
        text = re.sub(pattern, keep, text)
    if len(found) != 1:
        raise ValueError(
            f"need the {what} stated once, as in {example}; found {' and '.join(found) or 'none'}, text left: {text!r}"
        )
    return found[0], text


def _found(text: str, stems: dict[str, str]) -> list[str]:
    return [name for name, stem in stems.items() if re.search(rf"\b(?:{stem})\b", text)]


def _shape(clause: str) -> Shape:
    def one(what: str, stems: dict[str, str]) -> str:
        found = _found(clause, stems)
        if len(found) != 1:
            raise ValueError(
                f"need one {what} of {', '.join(stems)} in {clause!r}, found {' and '.join(found) or 'none'}; "
                "begin the clause of each shape with 'a'"
            )
        return found[0]

    kind = one("kind", KIND_STEMS)
    vertical, horizontal = _found(clause, _UP_DOWN), _found(clause, _LEFT_RIGHT)
    if not vertical:
        direction = one("direction", _LEFT_RIGHT)
    elif not horizontal:
        direction = one("direction", _UP_DOWN)
    else:
        upper = "upper" if one("direction", _UP_DOWN) == "up" else "lower"
        direction = f"{upper} {one('direction', _LEFT_RIGHT)}"
    return Shape(
        kind=kind,
        colour=one("colour", {name: name for name in COLOURS}),
        size=one("size", _SIZE_STEMS),
        speed=one("speed", _SPEED_STEMS),
        direction=direction,
    )
