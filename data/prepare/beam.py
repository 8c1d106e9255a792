"""Encoding on Apache Beam, which TFDS uses to write data sets too large for one host.

Beam decides which worker encodes what, shuffles the records and writes the files; it restarts workers that fail, but
a job that is stopped starts over. A worker loads the networks once. Importing this module needs Apache Beam.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared

from helios_jax.data.helios_latents.builder import HeliosLatents
from helios_jax.data.helios_latents.record import Size, size_name
from helios_jax.data.helios_latents.writer import Failure
from helios_jax.data.prepare.job import Encode, Named, skipped_file
from helios_jax.typing import Path

_CLIPS_PER_CALL = 16
"""Clips that a worker encodes at a time; their chunks fill its devices' batches."""


def write_latents_with_beam(
    work: Mapping[Size, Sequence[Named]], make_encode: Callable[[], Encode], folder: Path, *, options: str = ""
) -> None:
    """Encodes a list of clips to ``helios_latents`` with Beam.

    Args:
        work: The clips of each latent size.
        make_encode: Creates the encoder, on a worker; it must be picklable.
        folder: Where datasets live.
        options: Beam's pipeline options, as on a command line.

    Raises:
        FileExistsError: The dataset exists.
    """
    splits = {size_name(size): EncodeSplit(clips, size, make_encode, folder) for size, clips in work.items() if clips}
    builder = HeliosLatents(data_dir=folder, splits=splits)
    if builder.data_path.exists():
        raise FileExistsError(f"{builder.data_dir} exists; choose another folder or remove it first")
    config = tfds.download.DownloadConfig(beam_options=PipelineOptions(shlex.split(options)))
    builder.download_and_prepare(download_config=config)


class EncodeSplit(beam.PTransform):
    """Encodes all clips of one size to (uid, example); failures go to ``skipped_file``."""

    def __init__(self, clips: Sequence[Named], size: Size, make_encode: Callable[[], Encode], folder: Path) -> None:
        super().__init__()
        self._clips = list(clips)
        self._encode = EncodeClips(size, make_encode)
        self._skipped = os.fspath(skipped_file(folder, size))

    def expand(self, input_or_inputs: Any) -> Any:
        """Adds the steps to a pipeline."""
        outputs = (
            input_or_inputs
            | beam.Create(self._clips)
            | beam.BatchElements(min_batch_size=_CLIPS_PER_CALL, max_batch_size=_CLIPS_PER_CALL)
            | beam.ParDo(self._encode).with_outputs("skipped", main="examples")
        )
        _ = outputs.skipped | beam.io.WriteToText(self._skipped, shard_name_template="")
        return outputs.examples


class EncodeClips(beam.DoFn):
    """Encodes batches of clips to (uid, example), or to lines of JSON at the output "skipped"."""

    def __init__(self, size: Size, make_encode: Callable[[], Encode]) -> None:
        self._size = size
        self._make_encode = make_encode
        self._shared = Shared()

    def process(self, element: Any) -> Iterator[Any]:
        """Encodes one batch."""
        # One copy of the networks per process, whatever the number of threads.
        holder = self._shared.acquire(lambda: _Holder(self._make_encode()))
        for outcome in holder.encode(element, self._size):
            if isinstance(outcome, Failure):
                yield beam.pvalue.TaggedOutput("skipped", json.dumps(dataclasses.asdict(outcome)))
            else:
                yield outcome.uid, outcome.to_example()


@dataclasses.dataclass
class _Holder:
    """Holds the encoder: Beam shares objects by weak references, which functions need not support."""

    encode: Encode
