"""One recorded video, and its invariants."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from helios_jax.data.helios_latents.record import CHUNK_FRAMES, Size, finite, stored_embeds


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LevelPoints:
    """Points of some chunks' trajectories on one level.

    Attributes:
        latents: [chunks, points + 1, 9, h, w, C]: the samples at the student's steps, and last the level's end point.
        timesteps: [points], the timesteps of these steps, not rounded.
        sigmas: [points], their noise levels, descending.
    """

    latents: np.ndarray
    timesteps: np.ndarray
    sigmas: np.ndarray

    @property
    def points(self) -> int:
        """Number of the student's steps."""
        return len(self.sigmas)


Levels = tuple[LevelPoints, ...]
"""All levels of the pyramid, lowest first."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OdeRecord:
    """One video. The first chunk has points of its own, because a student can take more steps there.

    Records come from files, so ``check`` verifies their shapes; annotations do not.

    Attributes:
        uid: Name of the prompt, unique in its data set.
        caption: The prompt.
        embeds: [tokens, width], output of the text encoder for the prompt's tokens, without padding; no rows if it is
            not stored.
        first: Points of the first chunk.
        later: Points of the other chunks.
    """

    uid: str
    caption: str
    embeds: np.ndarray
    first: Levels
    later: Levels

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return 1 + len(self.later[-1].latents)

    @property
    def latents(self) -> np.ndarray:
        """[chunks, 9, h, w, C], the video: the end points of the highest level."""
        return np.concatenate([self.first[-1].latents[:, -1], self.later[-1].latents[:, -1]])

    @property
    def grid(self) -> tuple[tuple[int, int], ...]:
        """Number of points of the first and of later chunks, by level; batches hold records of one grid."""
        return tuple((first.points, later.points) for first, later in zip(self.first, self.later, strict=True))

    def points(self, chunk: int) -> tuple[Levels, int]:
        """Where the points of a chunk are: the levels, and the place among their chunks."""
        return (self.first, 0) if chunk == 0 else (self.later, chunk - 1)

    def check(self, size: Size) -> None:
        """Raises ValueError unless everything is finite, of fitting shapes, and of full size ``size``."""
        if not self.first or len(self.first) != len(self.later):
            raise ValueError(f"{len(self.first)} levels of the first chunk and {len(self.later)} of later ones")
        if self.embeds.ndim != 2:
            raise ValueError(f"text embeddings of shape {list(self.embeds.shape)}; need [tokens, width]")
        if not finite(self.embeds):
            raise ValueError("its embeds are not all finite")
        channels = self.first[-1].latents.shape[-1:]
        later = len(self.later[-1].latents)
        for part, levels, chunks in (("first", self.first, 1), ("later", self.later, later)):
            for level, points in enumerate(levels):
                down = len(levels) - 1 - level
                frames = (CHUNK_FRAMES, size[0] >> down, size[1] >> down, *channels)
                _check_points(points, f"{part}, level {level}", chunks, frames)

    def to_example(self) -> dict[str, Any]:
        """The record as ``HeliosOde`` stores it, samples in bfloat16."""
        # TFDS loses the shape of empty arrays. Without later chunks, one of zeros is stored, and not counted.
        later = self.later
        if self.chunks == 1:
            later = tuple(
                dataclasses.replace(level, latents=np.zeros((1, *level.latents.shape[1:]), np.float32))
                for level in later
            )
        return {
            "uid": self.uid,
            "caption": self.caption,
            "embeds": stored_embeds(self.embeds),
            "chunks": self.chunks,
            "first": {f"level{number}": _to_example(level) for number, level in enumerate(self.first)},
            "later": {f"level{number}": _to_example(level) for number, level in enumerate(later)},
        }

    @classmethod
    def from_example(cls, example: Mapping[str, Any]) -> "OdeRecord":
        """Inverse of ``to_example``, from what TFDS's data source yields."""
        embeds, chunks = example["embeds"], int(example["chunks"])
        return cls(
            uid=example["uid"].decode(),
            caption=example["caption"].decode(),
            embeds=embeds if embeds.any() else embeds[:0],
            first=_from_example(example["first"], 1),
            later=_from_example(example["later"], chunks - 1),
        )


def _check_points(points: LevelPoints, where: str, chunks: int, frames: tuple[int, ...]) -> None:
    count = points.points
    needed = (chunks, count + 1, *frames)
    if points.sigmas.shape != (count,) or points.timesteps.shape != (count,) or count < 1:
        raise ValueError(
            f"{where}: timesteps of shape {list(points.timesteps.shape)} and sigmas of shape "
            f"{list(points.sigmas.shape)}; need as many of one as of the other, at least 1"
        )
    if points.latents.shape != needed:
        raise ValueError(
            f"{where}: latents of shape {list(points.latents.shape)}; need {list(needed)}: chunks, {count} points and "
            "the end point, then frames, rows, columns and channels"
        )
    # Not descending includes NaN.
    if not (np.all(np.diff(points.sigmas) < 0) and points.sigmas[-1] > 0 and points.sigmas[0] <= 1):
        raise ValueError(f"{where}: sigmas {points.sigmas.tolist()} must descend within (0, 1]")
    if not np.isfinite(points.timesteps).all():
        raise ValueError(f"{where}: timesteps {points.timesteps.tolist()} must be finite")
    if not finite(points.latents):
        raise ValueError(f"{where}: its latents are not all finite")


def _to_example(level: LevelPoints) -> dict[str, np.ndarray]:
    import ml_dtypes

    return {
        "latents": np.asarray(level.latents, ml_dtypes.bfloat16),
        "timesteps": np.asarray(level.timesteps, np.float32),
        "sigmas": np.asarray(level.sigmas, np.float32),
    }


def _from_example(levels: Mapping[str, Mapping[str, np.ndarray]], chunks: int) -> Levels:
    return tuple(
        LevelPoints(**{**levels[f"level{number}"], "latents": levels[f"level{number}"]["latents"][:chunks]})
        for number in range(len(levels))
    )
