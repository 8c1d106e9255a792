"""The TFDS builder of ``helios_clips``.

    <folder>/helios_clips/1.0.0/
        dataset_info.json, features.json        TFDS metadata
        metadata.json                           buckets of all records, and what was skipped
        helios_clips-train.array_record-...     records, in the order of the list

A record holds the whole file that its clip is cut from, as it is, so nothing is encoded twice. Long videos should be
divided into clips before.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from helios_jax.data.helios_clips.decode import read_frames
from helios_jax.data.helios_clips.metadata import ClipError, ClipMetadata, read_clip_list
from helios_jax.data.helios_clips.rules import Bucket, ClipRules
from helios_jax.typing import Path

FEATURES = tfds.features.FeaturesDict(
    {
        "video": tfds.features.Tensor(shape=(), dtype=np.object_),  # bytes; the Video feature needs TensorFlow
        "caption": tfds.features.Text(),
        "name": tfds.features.Text(),
        "cut": tfds.features.Tensor(shape=(2,), dtype=np.int64),
        "crop": tfds.features.Tensor(shape=(4,), dtype=np.int64),
        "fps": np.float32,
        "num_frames": np.int64,
        "height": np.int64,
        "width": np.int64,
    }
)
"""What a record holds; ``num_frames``, ``height`` and ``width`` are those of its bucket."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """A clip that was left out.

    Attributes:
        index: Its place in the list.
        problem: See ``ClipError``.
        message: What was wrong.
    """

    index: int
    problem: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What became of a list of clips.

    Attributes:
        folder: The data set, for ``open_clips``.
        buckets: Of each record.
        skipped: Clips that were left out.
    """

    folder: pathlib.Path
    buckets: tuple[Bucket, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        """A line with all numbers."""
        problems = collections.Counter(clip.problem for clip in self.skipped)
        reasons = ", ".join(f"{count} {problem}" for problem, count in problems.most_common())
        return f"{self.folder}: {len(self.buckets)} clips, {len(self.skipped)} skipped" + f" ({reasons})" * bool(
            reasons
        )


class HeliosClips(tfds.core.GeneratorBasedBuilder):
    """Captioned parts of video files.

    Args:
        clips: The entries of a JSON list. Not needed for reading.
        videos: Folder that their paths are relative to.
        rules: Which of them are used, and how.
        **kwargs: See ``tfds.core.GeneratorBasedBuilder``; ``data_dir`` is the folder.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Encoded videos with captions, cuts, crops and buckets."}  # noqa: RUF012

    def __init__(
        self, *, clips: Sequence[Any] = (), videos: Path = ".", rules: ClipRules | None = None, **kwargs: Any
    ) -> None:
        self._clips, self._videos, self._rules = clips, pathlib.Path(videos), rules or ClipRules()
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Captioned parts of video files.",
            homepage="https://arxiv.org/abs/2603.04379",
            features=FEATURES,
            metadata=tfds.core.MetadataDict(buckets=[], skipped=[]),
            disable_shuffling=True,  # the order of the buckets is that of the records
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, entry in enumerate(self._clips):
            try:
                record, bucket = make_record(entry, self._videos, self._rules)
            except ClipError as error:
                logging.warning("clip %d skipped: %s", index, error)
                skipped = Skipped(index=index, problem=error.problem, message=str(error))
                self.info.metadata["skipped"].append(dataclasses.asdict(skipped))
            else:
                self.info.metadata["buckets"].append(dataclasses.astuple(bucket))
                yield index, record


def make_record(entry: Any, videos: Path, rules: ClipRules) -> tuple[dict[str, Any], Bucket]:
    """One entry of a list as a record, and its bucket; every frame of the cut is decoded to see that it can be.

    Raises:
        ClipError: The clip cannot be used, or is not wanted.
    """
    clip = ClipMetadata.from_json(entry)
    bucket = rules.bucket(clip)
    path = pathlib.Path(videos) / clip.path
    if not path.is_file():
        raise ClipError("missing", f"{clip.name}: there is no file {path}")
    video = path.read_bytes()
    for frame in read_frames(video, *clip.cut, name=clip.name):
        if frame.shape[:2] != (clip.height, clip.width):
            raise ClipError(
                "metadata",
                f"{clip.name} has frames of {frame.shape[0]} x {frame.shape[1]}, its resolution says "
                f"{clip.height} x {clip.width}",
            )
    values = {name: getattr(clip, name) for name in ("caption", "name", "cut", "crop", "fps")}
    return {"video": video, **values, **dataclasses.asdict(bucket)}, bucket


def build(clips: Path, videos: Path, folder: Path, *, rules: ClipRules | None = None) -> BuildReport:
    """Builds ``helios_clips`` from a JSON list; what cannot be used is logged, reported and skipped.

    Args:
        clips: The list.
        videos: Folder that its paths are relative to.
        folder: Where data sets live; this one goes to ``helios_clips/1.0.0`` inside.
        rules: Which clips are used, and how.

    Raises:
        FileExistsError: The data set exists.
        FileNotFoundError: There is no such list.
        ValueError: It is no JSON list, or none of its clips can be used.
    """
    builder = HeliosClips(clips=read_clip_list(clips), videos=videos, rules=rules, data_dir=str(folder))
    target = pathlib.Path(builder.data_path)
    if target.exists():
        raise FileExistsError(f"{target} exists; delete it, or choose another folder")
    try:
        builder.download_and_prepare()
    except AssertionError as error:
        if builder.info.metadata["buckets"]:
            raise
        raise ValueError(f"none of the clips of {clips} can be used:\n{_messages(builder.info.metadata)}") from error
    return _report(target, builder.info.metadata)


def open_clips(folder: Path) -> Sequence[dict[str, Any]]:
    """The records of a data set, for ``decode_clip`` and grain's ``MapDataset.source``; ``folder`` is the report's."""
    records: Any = tfds.builder_from_directory(str(folder)).as_data_source(split="train")
    return records


def open_report(folder: Path) -> BuildReport:
    """What ``build`` returned; its buckets are those of the records, in their order."""
    return _report(pathlib.Path(folder), tfds.builder_from_directory(str(folder)).info.metadata)


def _report(folder: pathlib.Path, metadata: Any) -> BuildReport:
    return BuildReport(
        folder=folder,
        buckets=tuple(Bucket(num_frames=f, height=h, width=w) for f, h, w in metadata["buckets"]),
        skipped=tuple(Skipped(**skipped) for skipped in metadata["skipped"]),
    )


def _messages(metadata: Any, limit: int = 10) -> str:
    messages = [skipped["message"] for skipped in metadata["skipped"]]
    return "\n".join(messages[:limit] + [f"... and {len(messages) - limit} more"] * (len(messages) > limit))
