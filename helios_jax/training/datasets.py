"""Settings of the training data: encoded clips, or scenes of a procedural world."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from helios_jax.checkpoints.hub import local_folder
from helios_jax.config import HistoryConfig
from helios_jax.data.helios_latents.reader import open_latents
from helios_jax.data.helios_latents.record import Size
from helios_jax.data.moving_shapes.styles import Style, check_style
from helios_jax.models.tokenization import Tokenizer
from helios_jax.training.checkpoints import Resumable
from helios_jax.training.sources import InMemory, OnError
from helios_jax.training.text_formats import PaddedEmbeds, TextFormat, Tokens, WithCaptions
from helios_jax.user_input import finite_number, user_path, whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
    """Windows of clips that ``helios-prepare`` encoded.

    Attributes:
        folders: Data sets.
        ratios: How often a clip of each data set is seen, relative to one with ratio 1; empty: 1 for all.
        tokens: Length that texts are padded to.
        tokenizer: Checkpoint with a tokenizer, to train on tokens; empty: stored embeddings are used.
        drop_text: Fraction of the captions that become the empty text, for guidance; needs ``tokenizer``.
        layout: Geometry of the context, the same as the method's.
        on_error: What to do about a record that cannot be used.
        in_memory: Read everything first and keep it in memory, for small data sets and many steps per second.
        threads: Threads that read.
        windows: Windows of a clip in each sample: 1, or 2 for distillation, which yields ``LatentPair``.
        captions: Bytes of UTF-8 that each caption takes in a batch, for a reward; longer ones cannot be used. 0:
            batches have no captions.
    """

    folders: tuple[str, ...]
    ratios: tuple[float, ...] = ()
    tokens: int = 512
    tokenizer: str = ""
    drop_text: float = 0.0
    layout: HistoryConfig = dataclasses.field(default_factory=HistoryConfig)
    on_error: OnError = "raise"
    in_memory: bool = False
    threads: int = 4
    windows: int = 1
    captions: int = 0

    def __post_init__(self) -> None:
        finite_number(self.drop_text, "data.drop_text")
        if not 0 <= self.drop_text < 1 or (self.drop_text and not self.tokenizer):
            raise ValueError(
                f"drop_text={self.drop_text} must be in [0, 1), and 0 without a tokenizer: stored embeddings do not "
                "include that of the empty text"
            )
        _check_folders(self)
        whole_number(self.windows, "data.windows", at_least=1, at_most=2)
        whole_number(self.captions, "data.captions", at_least=0)

    def _open(self, folder: str) -> Mapping[Size, Sequence[Any]]:
        """The records of each size, ``LatentRecord``: read one by one, since reading a damaged one raises."""
        opened = open_latents(user_path(folder, "data.folders"))
        return (
            {size: InMemory(records, self.on_error) for size, records in opened.items()} if self.in_memory else opened
        )

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Resumable:
        """See ``Data``; yields ``LatentBatch``, or ``LatentPair`` with two windows."""
        from helios_jax.training.loaders import latent_loader

        index, count = part
        text = _text_format(self.tokenizer, self.tokens, self.drop_text)
        return latent_loader(
            [self._open(folder) for folder in self.folders],
            batch=batch_size,
            seed=seed,
            text=WithCaptions(text=text, size=self.captions) if self.captions else text,
            ratios=self.ratios or None,
            history_config=self.layout,
            process_index=index,
            process_count=count,
            on_error=self.on_error,
            threads=self.threads,
            windows=self.windows,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Chunks of videos that ``helios-prepare --prompts`` recorded.

    Attributes:
        folders: Data sets.
        ratios: How often a video of each data set is seen, relative to one with ratio 1; empty: 1 for all.
        chunks: Different chunks of each video in a batch, one sample each; the size of a batch must be a multiple.
        tokens: Length that texts are padded to.
        tokenizer: Checkpoint with a tokenizer, to train on tokens; empty: stored embeddings are used.
        layout: Geometry of the context, the same as the method's.
        on_error: What to do about a record that cannot be used.
        in_memory: Read everything first and keep it in memory, for small data sets and many steps per second.
        threads: Threads that read.
    """

    folders: tuple[str, ...]
    ratios: tuple[float, ...] = ()
    chunks: int = 3
    tokens: int = 512
    tokenizer: str = ""
    layout: HistoryConfig = dataclasses.field(default_factory=HistoryConfig)
    on_error: OnError = "raise"
    in_memory: bool = False
    threads: int = 4

    def __post_init__(self) -> None:
        _check_folders(self)
        whole_number(self.chunks, "data.chunks", at_least=1)

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Resumable:
        """See ``Data``; yields ``OdeBatch``."""
        from helios_jax.data.helios_ode.reader import open_ode
        from helios_jax.training.ode_loader import ode_loader

        sources: list[Mapping[Size, Sequence[Any]]] = []
        for folder in self.folders:
            opened: Mapping[Size, Sequence[Any]] = open_ode(user_path(folder, "data.folders"))
            if self.in_memory:
                opened = {size: InMemory(records, self.on_error) for size, records in opened.items()}
            sources.append(opened)
        index, count = part
        return ode_loader(
            sources,
            batch=batch_size,
            seed=seed,
            chunks=self.chunks,
            text=_text_format(self.tokenizer, self.tokens),
            ratios=self.ratios or None,
            history_config=self.layout,
            process_index=index,
            process_count=count,
            on_error=self.on_error,
            threads=self.threads,
        )


def _check_folders(data: Latents | Trajectories) -> None:
    """Raises ValueError unless the settings that both have can work."""
    if isinstance(data.folders, str) or not data.folders:
        raise ValueError(f"data.folders={data.folders!r} must be a list of at least one data set")
    if data.ratios and len(data.ratios) != len(data.folders):
        raise ValueError(f"data.ratios={data.ratios} must have one ratio for each of {len(data.folders)} data.folders")
    for ratio in data.ratios:
        if not finite_number(ratio, "data.ratios", at_least=0):
            raise ValueError(f"data.ratios={data.ratios} must be above 0; leave out the folder instead")
    for name in ("tokens", "threads"):
        whole_number(getattr(data, name), f"data.{name}", at_least=1)
    if data.on_error not in ("raise", "skip"):
        raise ValueError(f"data.on_error={data.on_error!r} must be 'raise' or 'skip'")


def _text_format(tokenizer: str, tokens: int, drop: float = 0.0) -> TextFormat:
    """Stored embeddings, or tokens if there is a checkpoint with a tokenizer."""
    if not tokenizer:
        return PaddedEmbeds(tokens=tokens)
    return Tokens(tokenizer=Tokenizer.from_folder(local_folder(tokenizer)), tokens=tokens, drop=drop)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovingShapes:
    """Clips of the world of moving shapes. All scenes are rendered first and kept in memory.

    Attributes:
        scenes: How many scenes.
        frames: Length of a clip.
        length: Frames of a scene, from which a clip is a random cut; 0: as many as a clip has.
        height: Pixel rows.
        width: Pixel columns.
        world: Seed of the scenes.
        num_shapes: Shapes in each scene; 0: 1 to 3.
        style: "plain", or "textured": with textures, rotation, and shapes that leave the frame and return.
        processes: Processes that render.
        threads: Threads that put clips together.
    """

    scenes: int
    frames: int = 33
    length: int = 0
    height: int = 64
    width: int = 64
    world: int = 0
    num_shapes: int = 0
    style: Style = "plain"
    processes: int = 1
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("scenes", "frames", "height", "width", "processes", "threads"):
            whole_number(getattr(self, name), f"data.{name}", at_least=1)
        whole_number(self.world, "data.world", at_least=0)
        whole_number(self.length, "data.length", at_least=0)
        whole_number(self.num_shapes, "data.num_shapes", at_least=0, at_most=3)
        check_style(self.style, "data.style")
        if self.length and self.length < self.frames:
            raise ValueError(f"data.length={self.length} must be at least data.frames={self.frames}, or 0")

    def batches(self, batch_size: int, part: tuple[int, int], seed: int) -> Resumable:
        """See ``Data``; yields ``VideoBatch``."""
        from helios_jax.data.moving_shapes import MovingShapes as Scenes
        from helios_jax.training.loaders import video_loader

        scenes = Scenes(
            seed=self.world,
            size=self.scenes,
            frames=self.length or self.frames,
            height=self.height,
            width=self.width,
            num_shapes=self.num_shapes or None,
            style=self.style,
        )
        index, count = part
        return video_loader(
            [list(scenes.render_all(self.processes))],
            batch=batch_size,
            frames=self.frames,
            seed=seed,
            process_index=index,
            process_count=count,
            threads=self.threads,
        )
