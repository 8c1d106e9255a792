"""The reward of the moving shapes world: how much of its caption a video shows, read from its pixels.

Each score is 2 p - 1 for the fraction p of the statements that hold, so it is in [-1, 1] and 0 if half of them do.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from helios_jax.data.moving_shapes.scoring import Score, score
from helios_jax.data.moving_shapes.styles import Style, check_style
from helios_jax.typing import AnyArray, Float, UInt8

STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "appearance": ("colour", "kind", "size"),
    "motion": ("speed", "direction", "bounces"),
    "surroundings": ("count", "background", "lighting"),
}
"""What each score judges: attributes of every captioned shape, or of the whole video ("surroundings")."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeReward:
    """A ``distillation.rewards.Reward`` for videos of moving shapes.

    Attributes:
        names: Scores to give, of ``STATEMENTS``. "motion" holds for videos from their beginning only: captions state
            the first direction, and a later chunk may begin after the shape has turned.
        style: Style of the scenes, of ``moving_shapes.styles.STYLES``.
    """

    names: tuple[str, ...] = ("appearance", "surroundings")
    style: Style = "plain"

    def __post_init__(self) -> None:
        if not self.names or set(self.names) - set(STATEMENTS):
            raise ValueError(f"names={self.names!r} must be some of {', '.join(STATEMENTS)}")
        check_style(self.style)

    @property
    def reads(self) -> Literal["frames"]:
        """See ``Reward``."""
        return "frames"

    def __call__(
        self, samples: UInt8[AnyArray, "B F H W 3"], captions: Sequence[str]
    ) -> dict[str, Float[np.ndarray, " B"]]:
        """See ``Reward``; 99 frames of 64 x 64 pixels take about 0.2 s a sample.

        Raises:
            ValueError: There are not as many captions as samples, or a caption is not of this world.
        """
        if len(captions) != len(samples):
            raise ValueError(f"{len(samples)} samples need as many captions, got {len(captions)}")
        found = [score(np.asarray(frames), text, self.style) for frames, text in zip(samples, captions, strict=True)]
        return {name: np.array([_balance(one, name) for one in found], np.float32) for name in self.names}


def _balance(found: Score, name: str) -> float:
    """2 p - 1 for the fraction p of the statements of a score that hold."""
    of = [found] if name == "surroundings" else found.shapes
    held = [getattr(thing, statement) for thing in of for statement in STATEMENTS[name]]
    return 2 * sum(held) / len(held) - 1
