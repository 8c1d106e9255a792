"""The styles of the world, by name."""

from collections.abc import Callable
from typing import Literal, get_args

from helios_jax.data.moving_shapes import plain, textured
from helios_jax.data.moving_shapes.world import Scene

Style = Literal["plain", "textured"]
"""``plain``: plain colours, and shapes that stay in sight. ``textured``: see ``looks`` and ``textured``."""

STYLES: tuple[Style, ...] = get_args(Style)

CAPTION_TOKENS: dict[Style, int] = {"plain": 96, "textured": 112}
"""Length that captions are padded to: the longest has 88 words and signs, or 104, and an end."""

_SAMPLERS: dict[str, Callable[..., Scene]] = {
    "plain": plain.sample_plain_scene,
    "textured": textured.sample_textured_scene,
}


def sample_scene(seed: int, index: int, *, num_shapes: int | None = None, style: Style = "plain") -> Scene:
    """Draws scene ``index`` of the world ``seed``; see ``plain`` and ``textured``.

    Args:
        seed: The world.
        index: The scene; scenes are independent of each other.
        num_shapes: Shapes in it; None draws 1, 2 or 3.
        style: One of ``STYLES``.

    Raises:
        ValueError: More shapes than colours, or fewer than one; or there is no such style.
    """
    return _SAMPLERS[check_style(style)](seed, index, num_shapes=num_shapes)


def check_style(style: str, name: str = "style") -> Style:
    """Returns ``style``.

    Raises:
        ValueError: It is not one of ``STYLES``; ``name`` is what the message calls it.
    """
    if style not in STYLES:
        raise ValueError(f"{name} must be one of {', '.join(STYLES)}, got {style!r}")
    return style
