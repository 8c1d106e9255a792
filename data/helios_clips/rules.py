"""Which clips are used, and in what shape: the buckets that batches are made of.

The tables are those that Helios was trained with (PKU-YuanGroup/Helios, ``helios/dataset``): lengths of
4k + 1 frames and sizes of about 384 x 640 pixels.
"""

import dataclasses
import math

from helios_jax.data.helios_clips.metadata import ClipError, ClipMetadata

LENGTHS = (*range(21, 182, 20), 193, *range(221, 502, 20))
"""Numbers of frames; a clip is used with the largest that it has."""

RESOLUTIONS = (
    (768, 320),
    (768, 384),
    (640, 384),
    (768, 512),
    (576, 448),
    (512, 512),
    (448, 576),
    (512, 768),
    (384, 640),
    (384, 768),
    (320, 768),
)
"""Pixel rows and columns; a clip is used with the nearest aspect."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
    """Clips that can be batched.

    Attributes:
        num_frames: Frames.
        height: Pixel rows.
        width: Pixel columns.
    """

    num_frames: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipRules:
    """Decides the bucket of a clip.

    Attributes:
        min_frames: Clips with fewer are not used.
        num_frames: Fixed length for all clips, in place of ``lengths`` and ``min_frames``; clips with fewer
            frames are not used.
        lengths: Lengths of the buckets, rising.
        resolutions: Sizes of the buckets.
        single_resolution: The one size to use; clips nearer to another are not used. Training on one size
            takes (384, 640).

    Raises:
        ValueError: ``min_frames`` is below the shortest length, or ``single_resolution`` is not one of
            ``resolutions``.
    """

    min_frames: int = 121
    num_frames: int | None = None
    lengths: tuple[int, ...] = LENGTHS
    resolutions: tuple[tuple[int, int], ...] = RESOLUTIONS
    single_resolution: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {self.num_frames}")
        if list(self.lengths) != sorted(set(self.lengths)) or self.min_frames < self.lengths[0]:
            raise ValueError(
                f"lengths must rise, and min_frames={self.min_frames} must not be below the first; got {self.lengths}"
            )
        if self.single_resolution is not None and self.single_resolution not in self.resolutions:
            raise ValueError(f"single_resolution={self.single_resolution} is none of {self.resolutions}")

    def bucket(self, clip: ClipMetadata) -> Bucket:
        """The bucket of ``clip``.

        The resolution is the one whose aspect differs by the smallest factor from that of the crop.

        Raises:
            ClipError: The clip is too short, or has the shape of a resolution that is not wanted.
        """
        least = self.min_frames if self.num_frames is None else self.num_frames
        if clip.num_frames < least:
            raise ClipError("short", f"{clip.name} has {clip.num_frames} frames, at least {least} are needed")
        x0, x1, y0, y1 = clip.crop
        aspect = (x1 - x0) / (y1 - y0)
        nearest = min(self.resolutions, key=lambda size: abs(math.log(size[1] / size[0] / aspect)))
        wanted = self.single_resolution
        if wanted is not None and wanted != nearest:
            raise ClipError(
                "resolution",
                f"{clip.name} has {y1 - y0} x {x1 - x0} pixels, nearest to {nearest[0]} x {nearest[1]}; "
                f"wanted is {wanted[0]} x {wanted[1]} only",
            )
        length = self.num_frames or max(length for length in self.lengths if length <= clip.num_frames)
        return Bucket(num_frames=length, height=nearest[0], width=nearest[1])
