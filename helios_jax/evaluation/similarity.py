"""How alike frames are that lie d frames apart, in structure: drift that leaves all statistics as they are.

With thumbnails v_t, the means of the frame in 16 x 16 blocks for each colour, less their mean over the blocks,

    s(t, u) = <v_t, v_u> / (|v_t| |v_u|)                                                                  (1)
    similarity(d) = mean over t of s(t, t + d),        anchor(t) = s(0, t)                                (2)

for d = 1, 2, 4, 8, ... up to 512. A frame without any structure has no similarity and does not count. Only the last
512 thumbnails are kept, 3 KB each.
"""

import dataclasses

import numpy as np

from helios_jax.evaluation.frechet import block_means
from helios_jax.evaluation.metrics import Curve, Result, VideoInfo
from helios_jax.typing import Float, UInt8

BLOCKS = 16
FARTHEST = 512

_FLAT = 1e-3
"""Length of a thumbnail, in levels of 255 per block, below which it has no structure: rounding errors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarity:
    """Equation (2), as a ``Metric`` for videos of at least 16 x 16 pixels.

    Values: ``anchor_similarity``, the mean of anchor(t) over the last chunk of at least half the length.
    """

    @property
    def name(self) -> str:
        """See ``Metric``."""
        return "similarity"

    def start(self, video: VideoInfo) -> "_Similarity":
        """See ``Metric``."""
        if min(video.height, video.width) < BLOCKS:
            raise ValueError(f"video {video.name} of {video.height}x{video.width}; similarity needs 16x16 pixels")
        return _Similarity([2**power for power in range(10) if 2**power < video.num_frames], video.compared_chunks)


class _Similarity:
    def __init__(self, distances: list[int], compared_chunks: int) -> None:
        self._chunks_left = compared_chunks
        self._kept = np.empty((0, 3 * BLOCKS * BLOCKS), np.float32)
        self._sums = {distance: [0.0, 0] for distance in distances}
        self._first: np.ndarray | None = None
        self._anchor: list[float] = []
        self._last_chunk: Float[np.ndarray, " F"] = np.empty(0)

    def update(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        new = thumbnails(frames)
        both = np.concatenate([self._kept, new])
        for distance, sums in self._sums.items():
            start = max(len(self._kept), distance)  # the first new frame that has one so far before it
            if start >= len(both):
                continue
            products = np.einsum("fe,fe->f", both[start:], both[start - distance : len(both) - distance])
            found = products[np.isfinite(products)]
            sums[0] += float(found.sum())
            sums[1] += len(found)
        if self._first is None:
            self._first = new[0]
        to_first = new @ self._first
        self._anchor += to_first.tolist()
        if self._chunks_left > 0:
            self._last_chunk = to_first
        self._chunks_left -= 1
        self._kept = both[-FARTHEST:]

    def result(self) -> Result:
        means = {distance: total / count for distance, (total, count) in self._sums.items() if count}
        curve = Curve(axis="frames apart", at=tuple(means), values=tuple(means.values()))
        known = self._last_chunk[np.isfinite(self._last_chunk)]
        return Result(
            values={"anchor_similarity": float(known.mean()) if len(known) else float("nan")},
            curves={"similarity": curve, "similarity to frame 0": Curve.over("frame", self._anchor)},
        )


def thumbnails(frames: UInt8[np.ndarray, "F H W 3"]) -> Float[np.ndarray, "F 768"]:
    """v_t of length 1, flattened; NaN for a frame without structure."""
    planes = np.moveaxis(frames, -1, 0).astype(np.float32)
    blocks = np.stack([block_means(plane, BLOCKS) for plane in planes], axis=1)
    centred = (blocks - blocks.mean(-1, keepdims=True)).reshape(len(frames), -1)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    flat = lengths < _FLAT
    return np.where(flat, np.nan, centred / np.where(flat, 1, lengths)).astype(np.float32)
