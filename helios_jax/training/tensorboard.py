"""Event files for TensorBoard: scalars, and images and videos of the validation.

TensorBoard shows animated GIFs among its images. Videos become GIFs of at most 8 frames per second and 320 pixels per
side, because TensorBoard reads whole event files.
"""

import io
import math
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from helios_jax.media.files import open_video
from helios_jax.training.metrics import naming
from helios_jax.typing import Path

FLUSH_SECONDS = 20
"""How long an event may wait before it is on disk."""

GIF_RATE = 8
"""Frames per second of a GIF."""

GIF_SIDE = 320
"""Longer side of a GIF in pixels."""


class TensorBoard:
    """A ``MetricWriter`` of event files in ``<folder>/tensorboard``.

    Events are written by the thread that calls. The writer threads of TensorBoard's libraries die of a full disk
    without a word, and the next events then wait for them for ever.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        self._folder = pathlib.Path(folder) / "tensorboard"
        self._events: Any = event_pb2  # the messages of both are created when they are imported
        self._summaries: Any = summary_pb2
        with naming(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
            self._writer = RecordWriter(str(self._folder / name))
        self._flushed = time.monotonic()
        self._record(file_version="brain.Event:2")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricWriter``."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._add(step, [{"tag": name, "simple_value": value} for name, value in finite.items()])

    def show(self, step: int, files: Sequence[pathlib.Path]) -> None:
        """See ``MetricWriter``."""
        for file in files:
            if file.suffix == ".png":
                self._add_image(f"validation/{file.stem}/sheet", file.read_bytes(), step)
            elif file.suffix == ".mp4":
                self._add_image(f"validation/{file.stem}/video", gif(file), step)

    def close(self) -> None:
        """See ``MetricWriter``."""
        with naming(self._folder):
            self._writer.close()

    def _add_image(self, tag: str, encoded: bytes, step: int) -> None:
        from PIL import Image

        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
        image = self._summaries.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        self._add(step, [{"tag": tag, "image": image}])

    def _add(self, step: int, values: Sequence[Mapping[str, Any]]) -> None:
        summary = self._summaries.Summary(value=[self._summaries.Summary.Value(**value) for value in values])
        self._record(step=step, summary=summary)

    def _record(self, **fields: Any) -> None:
        with naming(self._folder):
            self._writer.write(self._events.Event(wall_time=time.time(), **fields).SerializeToString())
            # Flushing waits for the disk; what is not flushed yet is written at the end.
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()


def gif(video: pathlib.Path) -> bytes:
    """A small animated GIF of a video file."""
    frames = list(_small_frames(video))
    out = io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:], "duration": 1000 // GIF_RATE, "loop": 0}
    frames[0].save(out, format="GIF", **options)
    return out.getvalue()


def _small_frames(video: pathlib.Path) -> Iterator[Any]:
    """The frames of a GIF, as images of PIL."""
    with open_video(video) as (container, stream):
        stride = max(1, round(Fraction(stream.average_rate or GIF_RATE) / GIF_RATE))
        for number, frame in enumerate(container.decode(stream)):
            if number % stride == 0:
                image = frame.to_image()
                image.thumbnail((GIF_SIDE, GIF_SIDE))
                yield image
