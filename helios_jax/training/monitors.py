"""Monitors of sampled videos: do brightness, colours, sharpness or borders change from chunk to chunk?

Few-step generators fail in ways that no loss shows and single chunks hide: a tint or a shadow that grows over chunks,
oversaturation, loss of detail, visible borders. Monitors measure the videos of a validation (``validation.Samples``)
with the statistics of ``evaluation.statistics`` and give the metrics

    validation/<statistic>/chunk<i>    the mean over the videos of chunk i
    validation/<statistic>/drift       last chunk less first chunk
    validation/<statistic>/gap         mean over the chunks less that of data

with one picture of all curves and of the first and last frames (``monitors.png``). In a distillation the picture also
has curves of generator and critic (``training.training_curves``). Drift takes long videos to see: use
8 chunks or more (``num_frames=264``).
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from helios_jax.data.helios_latents.reader import open_latents
from helios_jax.data.helios_latents.record import LatentRecord, Size, size_name
from helios_jax.evaluation.drift_sheet import drift_sheet
from helios_jax.evaluation.statistics import STATISTICS, chunk_statistics, drift, mean_statistics
from helios_jax.models.network import Network
from helios_jax.models.vae import WanVae
from helios_jax.parallel.mesh import on_mesh_of, readable, replicated_like
from helios_jax.sampling.decoding import decode_chunk
from helios_jax.training.training_curves import Records, curves_of, draw_curves
from helios_jax.typing import UInt8
from helios_jax.user_input import finite_number, user_path, whole_number

SHEET = "monitors.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitors:
    """Which data the sampled videos are compared with.

    Attributes:
        folders: Data sets that ``helios-prepare`` wrote. Clips of the videos' size are decoded by the VAE, so that its
            own loss of detail is not counted. Empty: no data.
        clips: Number of clips, the first ones of all folders.
        chunks: Most chunks of a clip.
        reference: Names of statistics and their values on data, which take the place of measured ones.
    """

    folders: tuple[str, ...] = ()
    clips: int = 16
    chunks: int = 8
    reference: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.folders, str):
            raise ValueError(f"monitors.folders={self.folders!r} must be a list of data sets")
        for name in ("clips", "chunks"):
            whole_number(getattr(self, name), f"monitors.{name}", at_least=1)
        for name, value in self.reference:
            if name not in STATISTICS:
                raise ValueError(f"monitors.reference: {name!r} must be one of {', '.join(STATISTICS)}")
            finite_number(value, f"monitors.reference of {name}")

    def check(self) -> None:
        """Checks that the data sets are there.

        Raises:
            FileNotFoundError: A folder holds no finished data set.
        """
        _opened(self.folders)

    def prepare(self, vae: Network[WanVae], height: int, width: int, chunk_frames: int) -> "Monitor":
        """Measures the data.

        Args:
            vae: Decodes the clips.
            height: Pixel rows of the videos.
            width: Pixel columns.
            chunk_frames: Pixel frames of a chunk.

        Raises:
            FileNotFoundError: A folder holds no finished data set.
            ValueError: No folder has clips of this size, or a record is damaged.
        """
        reference: dict[str, float] = {}
        if self.folders:
            side = vae.config.scale_factor_spatial
            records = list(itertools.islice(_records(self.folders, (height // side, width // side)), self.clips))
            found = [self._measure(vae, record, chunk_frames) for record in records]
            for name in STATISTICS:
                values = np.concatenate([clip[name] for clip in found])
                if not np.isnan(values).all():
                    reference[name] = float(np.nanmean(values))
        return Monitor(reference=reference | dict(self.reference), chunk_frames=chunk_frames)

    def _measure(self, vae: Network[WanVae], record: LatentRecord, chunk_frames: int) -> dict[str, np.ndarray]:
        sharding, chunks = replicated_like(vae.params), []
        for latents in record.latents[: self.chunks]:
            placed = jax.device_put(np.asarray(latents, np.float32)[None], sharding)
            with on_mesh_of(vae.params):
                chunks.append(np.asarray(readable(decode_chunk(vae, placed)))[0])
        return chunk_statistics(np.concatenate(chunks), chunk_frames)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Monitor:
    """Prepared ``Monitors``.

    Attributes:
        reference: Values of data by statistic.
        chunk_frames: Pixel frames of a chunk.
    """

    reference: Mapping[str, float]
    chunk_frames: int

    def __call__(
        self, videos: Sequence[UInt8[np.ndarray, "F H W 3"]], file: pathlib.Path, records: Records | None = None
    ) -> dict[str, float]:
        """Measures videos of one size and length, and draws the picture, which replaces an older one.

        Args:
            videos: The videos.
            file: The picture.
            records: The log of the run so far; ``None``: no curves of it are drawn.

        Returns:
            The metrics above, without "validation/". What is not known, such as the jump at the border before the first
            chunk, is left out.
        """
        found = [chunk_statistics(video, self.chunk_frames) for video in videos]
        file.parent.mkdir(parents=True, exist_ok=True)
        curves = curves_of(records or {})
        draw_more = functools.partial(draw_curves, curves=curves) if curves else None
        drift_sheet(videos, found, self.reference, self.chunk_frames, draw_more).savefig(file, dpi=100)
        return dict(self._metrics(mean_statistics(found)))

    def _metrics(self, means: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
        for name in STATISTICS:
            values: dict[str, Any] = {f"chunk{number}": value for number, value in enumerate(means[name])}
            values["drift"] = drift(means[name])
            known = means[name][~np.isnan(means[name])]
            if name in self.reference and len(known):
                values["gap"] = known.mean() - self.reference[name]
            for key, value in values.items():
                if math.isfinite(value):
                    yield f"{name}/{key}", float(value)


def _records(folders: Sequence[str], size: Size) -> Iterator[LatentRecord]:
    """The records of that size.

    Raises:
        ValueError: There are none.
    """
    opened = _opened(folders)
    if not any(size in sizes for sizes in opened):
        others = sorted({size_name(other) for sizes in opened for other in sizes})
        raise ValueError(
            f"validation.monitors.folders={tuple(folders)} have latents of {', '.join(others)}, and the videos of "
            f"validation need {size_name(size)}: sample videos of the data's size, or leave it empty"
        )
    for sizes in opened:
        records = sizes.get(size, ())
        for index in range(len(records)):
            record = records[index]
            record.check(size)
            yield record


def _opened(folders: Sequence[str]) -> list[Mapping[Size, Any]]:
    opened: list[Mapping[Size, Any]] = []
    for folder in folders:
        try:
            opened.append(open_latents(user_path(folder, "validation.monitors.folders")))
        except FileNotFoundError as error:
            text = f"validation.monitors.folders: {error}; an empty list compares videos with no data"
            raise FileNotFoundError(text) from error
    return opened
