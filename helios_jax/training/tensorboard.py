"""Event files for TensorBoard: scalars, and images and videos of the validation.

TensorBoard shows animated GIFs among its images. Videos become GIFs of at most 8 frames per second and 320 pixels per
side, because TensorBoard reads whole event files.
"""

import io
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from helios_jax.media.files import open_video
from helios_jax.typing import Path

GIF_RATE = 8
"""Frames per second of a GIF."""

GIF_SIDE = 320
"""Longer side of a GIF in pixels."""


class TensorBoard:
    """A ``MetricWriter`` of event files in ``<folder>/tensorboard``."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer: Any = SummaryWriter(str(pathlib.Path(folder) / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricWriter``."""
        for name, value in values.items():
            if math.isfinite(value):  # Other values cannot be plotted, and tensorboardX warns about each of them.
                self._writer.add_scalar(name, value, step)

    def show(self, step: int, files: Sequence[pathlib.Path]) -> None:
        """See ``MetricWriter``."""
        for file in files:
            if file.suffix == ".png":
                self._add_image(f"validation/{file.stem}/sheet", file.read_bytes(), step)
            elif file.suffix == ".mp4":
                self._add_image(f"validation/{file.stem}/video", gif(file), step)

    def close(self) -> None:
        """See ``MetricWriter``."""
        self._writer.close()

    def _add_image(self, tag: str, encoded: bytes, step: int) -> None:
        from PIL import Image
        from tensorboardX.proto import summary_pb2

        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
        # ``add_image`` accepts only the pixels of a single frame.
        proto: Any = summary_pb2  # its messages are created when it is imported
        shown = proto.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        summary = proto.Summary(value=[proto.Summary.Value(tag=tag, image=shown)])
        self._writer.file_writer.add_summary(summary, step)


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
