"""History injection: gives a training sample one of the contexts that occur in sampling.

The network learns text-, image- and video-to-video at once, because they differ only in which frames of the context
are zero (Helios, arXiv 2603.04379). A sample is a window of a real video, and three tests in a row decide which part of
its past is dropped, with u1 to u3 uniform and n uniform over 0 ... floor(buffer / chunk):

    u1 < t2v          nothing is kept                                                   (text-to-video)
    else u2 < i2v     the anchor and the newest frame(s), the short tier, are kept      (image-to-video)
    else u3 < v2v     the oldest (buffer mod chunk) + n chunk frames are dropped        (a video that just began)
    else              everything is kept

The kept frames are then corrupted (``helios_jax.training.corruption``). The network reads them through the same
``History.tiers`` as in sampling.

Decisions are drawn for each sample. In the published training one draw decided for all samples of a GPU, one or two,
and all ranks had the same seed; ``decide="batch"`` reproduces this.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from helios_jax.config import HistoryConfig
from helios_jax.context import History
from helios_jax.training.batch import LatentBatch
from helios_jax.training.corruption import (
    Corruption,
    CorruptionDraws,
    Saturation,
    SaturationDraws,
    check_probabilities,
    corrupt_history,
    saturate_history,
)
from helios_jax.typing import Array, Bool, Float, Int, Key, Sequence

Decide = Literal["sample", "batch"]
"""Whether decisions are drawn for each sample or once for all samples of a step."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DropDraws:
    """Everything random about ``drop_context``; all U(0,1).

    Attributes:
        t2v: u1 above.
        i2v: u2.
        v2v: u3.
        chunks: Determines n.
    """

    t2v: Float[Array, "*B"]
    i2v: Float[Array, "*B"]
    v2v: Float[Array, "*B"]
    chunks: Float[Array, "*B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextDrop:
    """Probability of each form of context, given that the tests before it failed.

    Attributes:
        t2v: Probability of an empty context.
        i2v: Probability of the anchor and the short tier alone.
        v2v: Probability of a past that begins at the border of a chunk.
    """

    t2v: float = 0.4
    i2v: float = 0.1
    v2v: float = 0.4

    def __post_init__(self) -> None:
        check_probabilities(self, "t2v", "i2v", "v2v")

    @classmethod
    def published(cls) -> "ContextDrop":
        """Probabilities of the released Base and Mid, which never saw the image-to-video form."""
        return cls(i2v=0.0)

    @staticmethod
    def draw(key: Key[Array, ""]) -> DropDraws:
        """The draws for one sample."""
        t2v, i2v, v2v, chunks = jax.random.uniform(key, (4,))
        return DropDraws(t2v=t2v, i2v=i2v, v2v=v2v, chunks=chunks)


def drop_context(history: History, draws: DropDraws, config: ContextDrop, layout: HistoryConfig) -> History:
    """Decides the form of each sample's context and zeroes the frames that it lacks."""
    t2v, i2v, v2v = draws.t2v, draws.i2v, draws.v2v
    size = layout.buffer_frames
    long, mid, _ = layout.tier_sizes
    count, rest = divmod(size, layout.chunk_frames)
    n = jnp.floor(draws.chunks * (count + 1)).astype(jnp.int32)
    dropped = jnp.select(
        [t2v < config.t2v, i2v < config.i2v, v2v < config.v2v],
        [jnp.full_like(n, size), jnp.full_like(n, long + mid), rest + layout.chunk_frames * n],
        0,
    )
    kept = jnp.arange(size) >= dropped[:, None]
    return History(
        frames=jnp.where(kept[:, :, None, None, None], history.frames, 0),
        anchor=jnp.where((t2v < config.t2v)[:, None, None, None, None], 0, history.anchor),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class InjectionDraws:
    """Everything random about an ``Injection``."""

    drop: DropDraws
    corruption: CorruptionDraws | None
    saturation: SaturationDraws | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Contexts:
    """The contexts of a batch in distillation.

    Attributes:
        plain: After drops and corruption: the one for scores and discriminator.
        saturated: With colour shifts as well: the one for the generator.
        is_empty: Whether all frames of a sample's context are zero, as before the first chunk of a video.
    """

    plain: History
    saturated: History
    is_empty: Bool[Array, " B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Injection:
    """Turns a window of a video into the context that the network is trained with.

    Attributes:
        layout: Tiers of the context, as in sampling.
        drop: Forms of context.
        corruption: Noise and blur; ``None``: the true past.
        saturation: Colour shifts; ``None``: none.
        decide: "sample": every sample has its own form of context, its own kind of corruption, size of blur and colour
            shift; "batch": the draws of the step's first sample decide these for all samples of the step, in every
            microbatch. Noise and its level are drawn for each frame of each sample in either case.
    """

    layout: HistoryConfig = dataclasses.field(default_factory=HistoryConfig)
    drop: ContextDrop = dataclasses.field(default_factory=ContextDrop)
    corruption: Corruption | None = dataclasses.field(default_factory=Corruption)
    saturation: Saturation | None = dataclasses.field(default_factory=Saturation)
    decide: Decide = "sample"

    def __post_init__(self) -> None:
        if self.decide not in get_args(Decide):
            raise ValueError(f"decide={self.decide!r} must be 'sample' or 'batch'")

    @classmethod
    def published(cls, decide: Decide = "sample") -> "Injection":
        """Probabilities and kinds of the released Base and Mid: drops of 0.4 / 0 / 0.4, noise alone.

        Decisions are drawn for each sample, unlike in the published training; see ``decide="batch"``.
        """
        drop, corruption = ContextDrop.published(), Corruption.published()
        return cls(drop=drop, corruption=corruption, saturation=None, decide=decide)

    def draw(
        self, key: Key[Array, ""], shape: Sequence[int], first_key: Key[Array, ""] | None = None
    ) -> InjectionDraws:
        """The draws for one sample.

        Args:
            key: The sample's key.
            shape: Shape [T, H, W, C] of its history.
            first_key: The key of the first sample of the step, from which ``decide="batch"`` draws decisions;
                ``None``: ``key``.
        """
        own = self._draw(key, shape)
        if self.decide == "sample" or first_key is None:
            return own
        shared, corruption = self._draw(first_key, shape), None
        if own.corruption is not None and shared.corruption is not None:
            sigma, noise = own.corruption.sigma, own.corruption.noise
            corruption = dataclasses.replace(shared.corruption, sigma=sigma, noise=noise)
        return dataclasses.replace(shared, corruption=corruption)

    def _draw(self, key: Key[Array, ""], shape: Sequence[int]) -> InjectionDraws:
        drop, corruption, saturation = jax.random.split(key, 3)
        frames, *rest = shape
        with_anchor = (1 + frames, *rest)
        return InjectionDraws(
            drop=self.drop.draw(drop),
            corruption=self.corruption.draw(corruption, with_anchor) if self.corruption else None,
            saturation=self.saturation.draw(saturation, frames) if self.saturation else None,
        )

    def history(self, batch: LatentBatch, draws: InjectionDraws) -> History:
        """The context of every sample, fp32; ``.tiers(layout)`` is what the network reads.

        Raises:
            ValueError: The batch and the layout differ in the number of history frames.
        """
        return self.contexts(batch, draws).saturated

    def contexts(self, batch: LatentBatch, draws: InjectionDraws) -> Contexts:
        """The context of every sample with and without colour shifts, fp32.

        Raises:
            ValueError: See ``history``.
        """
        if batch.history.shape[1] != self.layout.buffer_frames:
            raise ValueError(
                f"the batch has {batch.history.shape[1]} frames of history and the layout reads "
                f"{self.layout.buffer_frames} (sizes {self.layout.sizes}); use one HistoryConfig for data and training"
            )
        frames, anchor = (jnp.asarray(x, jnp.float32) for x in (batch.history, batch.anchor))
        kept = drop_context(History(frames=frames, anchor=anchor), draws.drop, self.drop, self.layout)
        return self.damaged(kept, draws)

    def chunks(self, batch: LatentBatch, draws: InjectionDraws) -> int | Int[Array, " B"]:
        """The number of every sample's chunk in its video, for the rotary table: 0 if all of its past is dropped.

        With relative positions, which do not depend on it, it is 0 for all samples.

        Raises:
            ValueError: Positions are absolute, and the batch has no numbers.
        """
        if self.layout.positions == "relative":
            return 0
        if batch.chunk is None:
            raise ValueError("absolute positions need the numbers of chunks: batch.chunk is None")
        return jnp.where(draws.drop.t2v < self.drop.t2v, 0, jnp.asarray(batch.chunk))

    def damaged(self, history: History, draws: InjectionDraws) -> Contexts:
        """The contexts with this history, from which nothing is dropped."""
        # Corruption leaves zero frames zero, so it does not matter that this is found before it.
        empty = ~((history.frames != 0).any((1, 2, 3, 4)) | (history.anchor != 0).any((1, 2, 3, 4)))
        if self.corruption is not None and draws.corruption is not None:
            history = corrupt_history(history, draws.corruption, self.corruption, self.layout)
        saturated = history
        if self.saturation is not None and draws.saturation is not None:
            saturated = saturate_history(history, draws.saturation, self.saturation, self.layout)
        return Contexts(plain=history, saturated=saturated, is_empty=empty)
