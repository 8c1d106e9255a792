"""``--suite=moving_shapes``: how many videos show what their caption of the small world says.

The scenes themselves after a pass through the VAE (``vae``) are an upper bound, and their statistics are compared with
those of the rendered scenes (``scenes``).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from helios_jax.evaluation.appearance import Appearance
from helios_jax.evaluation.metrics import VideoInfo
from helios_jax.evaluation.records import Record
from helios_jax.evaluation.runner import Batch, Chunks, Part
from helios_jax.evaluation.sources import vae_chunks
from helios_jax.evaluation.suites.base import Scores, Subject, Table, check_size, number, scene_prompts
from helios_jax.evaluation.worlds import World, WorldSettings, row_of


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MovingShapesSuite:
    """A ``Suite``.

    Attributes:
        subject: Whose videos.
        world: The scenes.
        settings: Size and length of scenes and videos.
        videos: Number of videos; those of files are as many as there are.
        prompts: Captions of files by id; ``None``: those of the scenes whose numbers they have.
    """

    subject: Subject
    world: World
    settings: WorldSettings
    videos: int
    prompts: Mapping[str, str] | None = None

    @functools.cached_property
    def parts(self) -> list[Part]:
        """See ``Suite``."""
        own = (*self.world.metrics, Appearance())
        with_scene = (*own, *self.world.scene_metrics)
        metrics = (*(with_scene if self.subject.continues else own), *self.subject.all_metrics)
        if self.subject.sampler is None:
            prompts = scene_prompts(self.world, self.subject.files) if self.prompts is None else self.prompts
            part = Part(name="files", batches=self.subject.file_batches(prompts), metrics=metrics)
            check_size(part.videos)
            for video in part.videos:
                for metric in metrics:
                    metric.start(video)
            return [part]
        chunk = self.subject.chunk_frames
        if self.settings.frames % chunk:
            raise ValueError(f"--num_frames={self.settings.frames}: scenes need whole chunks of {chunk} frames")
        videos = [self._video(n) for n in range(self.videos)]
        check_size(videos[:1])
        scenes = self._scenes(videos)
        return [
            Part(name="sampled", batches=self.subject.batches(videos), metrics=metrics),
            Part(name="vae", batches=[self._decoded(batch) for batch in scenes], metrics=with_scene),
            Part(name="scenes", batches=scenes, metrics=with_scene),
        ]

    def _video(self, scene: int) -> VideoInfo:
        return VideoInfo(
            name=str(scene),
            num_frames=self.settings.frames,
            height=self.settings.height,
            width=self.settings.width,
            chunk_frames=self.subject.chunk_frames,
            prompt=self.world.caption(scene),
        )

    def _scenes(self, videos: Sequence[VideoInfo]) -> list[Batch]:
        parts = [videos[start : start + self.subject.batch] for start in range(0, len(videos), self.subject.batch)]
        return [Batch(videos=tuple(part), chunks=functools.partial(self._rendered, part)) for part in parts]

    def _rendered(self, videos: Sequence[VideoInfo]) -> Chunks:
        yield from np.split(self._frames(videos), videos[0].num_chunks, axis=1)

    def _decoded(self, batch: Batch) -> Batch:
        def chunks() -> Chunks:
            assert self.subject.sampler is not None, "files have no VAE"
            yield from vae_chunks(self.subject.sampler.load(), self._frames(batch.videos))

        return Batch(videos=batch.videos, chunks=chunks)

    def _frames(self, videos: Sequence[VideoInfo]) -> np.ndarray:
        return np.stack([self.world.frames(int(video.name)) for video in videos])

    def scores(self, records: Mapping[str, Sequence[Record]]) -> Scores:
        """See ``Suite``."""
        own = self.parts[0].name
        found: Scores = {name: self.world.scores(part) for name, part in records.items() if name != "scenes"}
        scenes = records.get("scenes", ())
        found["statistics"] = {name: self.world.statistics(part, scenes) for name, part in records.items()}
        found["videos"] = [row_of(record) for record in records[own]]
        return found

    def tables(self, scores: Scores) -> list[Table]:
        """See ``Suite``."""
        titles = {"sampled": "Sampled videos", "files": "Videos in files", "vae": "Scenes through the VAE"}
        tables: list[Table] = []
        for part, title in titles.items():
            values = scores.get(part, {}).items()
            rows = [(name, value if isinstance(value, str) else number(value)) for name, value in values]
            tables += [(title, rows)] if rows else []
        return tables
