"""What an experiment is trained on, as settings: encoded clips, or scenes of a procedural world."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from helios_jax.checkpoints.hub import local_folder
from helios_jax.config import HistoryConfig
from helios_jax.sampling.text import Tokenizer
from helios_jax.training.checkpoints import Resumable
from helios_jax.training.loaders import OnError, PaddedEmbeds, Tokens, latent_loader, video_loader
from helios_jax.typing import UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
    """Windows of clips that ``helios-prepare`` encoded.

    Attributes:
        folders: Data sets.
        ratios: How often a clip of each is seen, relative to one with ratio 1; empty: 1 for all.
        tokens: Length that texts are padded to.
        tokenizer: Checkpoint with a tokenizer, to train on tokens; empty: stored embeddings are used.
        layout: Geometry of the context, that of the method.
        on_error: What to do about a record that cannot be used.
        threads: Threads that read.
    """

    folders: tuple[str, ...]
    ratios: tuple[float, ...] = ()
    tokens: int = 512
    tokenizer: str = ""
    layout: HistoryConfig = dataclasses.field(default_factory=HistoryConfig)
    on_error: OnError = "raise"
    threads: int = 4

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Resumable:
        """See ``Data``; yields ``LatentBatch``."""
        text = PaddedEmbeds(tokens=self.tokens)
        if self.tokenizer:
            text = Tokens(tokenizer=Tokenizer.from_folder(local_folder(self.tokenizer)), tokens=self.tokens)
        index, count = part
        return latent_loader(
            self.folders,
            batch=batch_size,
            seed=seed,
            text=text,
            ratios=self.ratios or None,
            history=self.layout,
            process_index=index,
            process_count=count,
            on_error=self.on_error,
            threads=self.threads,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovingShapes:
    """Clips of the world of moving shapes, rendered as they are needed.

    Attributes:
        scenes: How many different scenes.
        frames: Length of a clip, from the start of its scene.
        height: Pixel rows.
        width: Pixel columns.
        world: Seed of the scenes.
        threads: Threads that render.
    """

    scenes: int
    frames: int = 33
    height: int = 64
    width: int = 64
    world: int = 0
    threads: int = 2

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Resumable:
        """See ``Data``; yields ``VideoBatch``."""
        from data.moving_shapes import MovingShapes as Scenes

        scenes = Scenes(seed=self.world, size=self.scenes, frames=self.frames, height=self.height, width=self.width)
        index, count = part
        return video_loader(
            [_Frames(scenes)],
            batch=batch_size,
            frames=self.frames,
            seed=seed,
            process_index=index,
            process_count=count,
            threads=self.threads,
        )


class _Frames(Sequence):
    """The frames of scenes, without their captions."""

    def __init__(self, scenes: Any) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "F H W 3"]:
        return self.scenes[index]["frames"]
