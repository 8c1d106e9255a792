"""The context of a chunk: the past frames that the network reads.

A fixed-size buffer holds the last latent frames of the video. For each chunk it is read as three tiers,
patchified more and more coarsely, plus the anchor (the first frame of the video), which keeps colours and identity
from drifting (Helios, arXiv 2603.04379):

    buffer  [ long: 16 | mid: 2 | short: 1 ]      short tier seen by the network = [anchor, last frame]

Text-, image- and video-to-video differ only in what the buffer and the anchor hold at the start:
zeros; a still clip's last frame and the image; the clip's latents and its first frame. The buffer never
grows, so every chunk of a video of any length costs the time and memory of the first.
"""

import dataclasses

import jax
import jax.numpy as jnp

from helios_jax.config import HistoryConfig
from helios_jax.typing import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiers:
    """History latents in the three tiers that the network reads, in model space.

    Attributes:
        long: Oldest frames; patchified with four times the base patch.
        mid: Patchified with twice the base patch.
        short: The anchor (if kept) and the most recent frame(s), at the base patch.
    """

    long: Float[Array, "B T1 H W C"]
    mid: Float[Array, "B T2 H W C"]
    short: Float[Array, "B T3 H W C"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """The fixed-size memory of a video being generated.

    Attributes:
        frames: The most recent latent frames, oldest first, fp32, zeros where there is no past.
        anchor: The first frame of the video, zeros until it is known.
    """

    frames: Float[Array, "B T H W C"]
    anchor: Float[Array, "B 1 H W C"]

    @classmethod
    def empty(cls, history_config: HistoryConfig, batch: int, height: int, width: int, channels: int) -> "History":
        """The context of text-to-video: no past. ``height`` and ``width`` are latent sides."""
        shape = (batch, history_config.buffer_frames, height, width, channels)
        return cls(frames=jnp.zeros(shape, jnp.float32), anchor=jnp.zeros((batch, 1, *shape[2:]), jnp.float32))

    def push(self, latents: Float[Array, "B T2 H W C"]) -> "History":
        """Appends frames and forgets as many of the oldest."""
        frames = jnp.concatenate([self.frames, latents.astype(jnp.float32)], axis=1)
        return dataclasses.replace(self, frames=frames[:, -self.frames.shape[1] :])

    def replace_tail(self, latents: Float[Array, "B T2 H W C"]) -> "History":
        """Overwrites the most recent frames; a clip longer than the buffer fills it with its end."""
        kept = max(0, self.frames.shape[1] - latents.shape[1])
        frames = jnp.concatenate([self.frames[:, :kept], latents.astype(jnp.float32)], axis=1)
        return dataclasses.replace(self, frames=frames[:, -self.frames.shape[1] :])

    def with_anchor(self, anchor: Float[Array, "B 1 H W C"]) -> "History":
        """Fixes the first frame."""
        return dataclasses.replace(self, anchor=anchor.astype(jnp.float32))

    def tiers(self, history_config: HistoryConfig) -> Tiers:
        """Splits the buffer into tiers; the anchor heads the short tier when it is kept."""
        long, mid, _ = history_config.tier_sizes
        short = self.frames[:, long + mid :]
        if history_config.keep_first_frame:
            short = jnp.concatenate([self.anchor, short], axis=1)
        return Tiers(long=self.frames[:, :long], mid=self.frames[:, long : long + mid], short=short)
