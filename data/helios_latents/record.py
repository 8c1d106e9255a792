"""One encoded clip, and its invariants."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

CHUNK_FRAMES = 9
"""Latent frames of a chunk: 33 pixel frames."""

Size = tuple[int, int]
"""Latent rows and columns."""


class RecordError(ValueError):
    """A record that cannot be used; the message names it and its file."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatentRecord:
    """One encoded clip. Records come from files, so ``check`` verifies their shapes; annotations do not.

    Attributes:
        uid: Name of the clip, unique in its dataset.
        caption: Its text.
        fps: Frames per second; 0 when unknown.
        height: Pixel rows that were encoded.
        width: Pixel columns that were encoded.
        latents: [S, 9, h, w, C], chunks of latents in model space, each from its own call of the VAE's encoder.
        anchor: [h, w, C], the first frame of the first chunk.
        embeds: [tokens, width], output of the text encoder for the caption's tokens, without padding; no rows when
            the text encoder is to be trained.
    """

    uid: str
    caption: str
    fps: float
    height: int
    width: int
    latents: np.ndarray
    anchor: np.ndarray
    embeds: np.ndarray

    def check(self, size: Size) -> None:
        """Raises ValueError unless the latents are finite chunks of ``size`` and the anchor matches them."""
        needed = (CHUNK_FRAMES, *size)
        shape = self.latents.shape
        if len(shape) != 5 or shape[1:4] != needed or shape[0] < 1:
            raise ValueError(
                f"latents of shape {list(shape)}; need [S, {', '.join(map(str, needed))}, C] with at least one chunk"
            )
        if self.anchor.shape != (*size, shape[-1]):
            raise ValueError(f"an anchor of shape {list(self.anchor.shape)}; need {[*size, shape[-1]]}")
        if self.embeds.ndim != 2:
            raise ValueError(f"text embeddings of shape {list(self.embeds.shape)}; need [tokens, width]")
        for name in _ARRAYS:
            if not finite(getattr(self, name)):
                raise ValueError(f"its {name} are not all finite")

    def to_example(self) -> dict[str, Any]:
        """The record as ``HeliosLatents`` stores it, arrays in bfloat16."""
        import ml_dtypes

        arrays = {name: np.asarray(getattr(self, name), ml_dtypes.bfloat16) for name in ("latents", "anchor")}
        arrays["embeds"] = stored_embeds(self.embeds)
        return {name: getattr(self, name) for name in _VALUES} | arrays

    @classmethod
    def from_example(cls, example: Mapping[str, Any]) -> "LatentRecord":
        """Inverse of ``to_example``, from what TFDS's data source yields."""
        embeds = example["embeds"]
        return cls(
            uid=example["uid"].decode(),
            caption=example["caption"].decode(),
            fps=float(example["fps"]),
            height=int(example["height"]),
            width=int(example["width"]),
            latents=example["latents"],
            anchor=example["anchor"],
            embeds=embeds if embeds.any() else embeds[:0],
        )


def finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite in bfloat16, the dtype in which they are stored."""
    import ml_dtypes

    return bool(np.isfinite(np.asarray(array, ml_dtypes.bfloat16)).all())


def stored_embeds(embeds: np.ndarray) -> np.ndarray:
    """Text embeddings in bfloat16, as records store them."""
    import ml_dtypes

    # TFDS loses the shape of empty arrays. No text is stored as one row of zeros, which no token has.
    return np.asarray(embeds if len(embeds) else np.zeros((1, max(1, embeds.shape[1]))), ml_dtypes.bfloat16)


_ARRAYS = ("latents", "anchor", "embeds")
_VALUES = ("uid", "caption", "fps", "height", "width")


def size_name(size: Size) -> str:
    """Name of the split for latents of ``size``."""
    return f"{size[0]}x{size[1]}"


def parse_size(name: str) -> Size:
    """Inverse of ``size_name``. Raises ValueError when ``name`` is not HEIGHTxWIDTH."""
    rows, _, columns = name.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise ValueError(f"{name!r} is not a size such as 48x80 (rows x columns)")
    return int(rows), int(columns)
