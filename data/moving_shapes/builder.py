"""The TFDS builder of ``moving_shapes``: scenes as losslessly encoded videos.

Records have the form of ``helios_clips`` and are read by the same ``decode_clip``. H.264 in RGB at quantiser 0 gives
back the very pixels that were rendered in a twentieth of their size (99 frames of 64 x 64: 60 KB in place of 1.2 MB).
"""

import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from helios_jax.data.helios_clips.builder import FEATURES
from helios_jax.data.moving_shapes.source import MovingShapes
from helios_jax.typing import Path, UInt8

_FPS = 24


class MovingShapesBuilder(tfds.core.GeneratorBasedBuilder):
    """Scenes of the world of moving shapes.

    Args:
        source: The scenes. Not needed for reading.
        **kwargs: See ``tfds.core.GeneratorBasedBuilder``; ``data_dir`` is the folder.
    """

    name = "moving_shapes"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Shapes that bounce, with captions."}  # noqa: RUF012

    def __init__(self, *, source: MovingShapes | None = None, **kwargs: Any) -> None:
        self._source = source
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Videos of coloured shapes that bounce off the borders, with captions that state everything.",
            features=FEATURES,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        source = self._source
        assert source is not None, "a builder without a source only reads"
        for index in range(len(source)):
            item = source[index]
            yield (
                index,
                {
                    "video": encode_lossless(item["frames"]),
                    "caption": item["caption"],
                    "name": f"moving_shapes-{source.seed}-{index}",
                    "cut": (0, source.frames),
                    "crop": (0, source.width, 0, source.height),
                    "fps": _FPS,
                    "num_frames": source.frames,
                    "height": source.height,
                    "width": source.width,
                },
            )


def build(source: MovingShapes, folder: Path) -> pathlib.Path:
    """Writes the scenes of ``source`` to ``moving_shapes/1.0.0`` in ``folder``; returns it, for ``open_clips``.

    Raises:
        FileExistsError: The data set exists.
    """
    builder = MovingShapesBuilder(source=source, data_dir=str(folder))
    target = pathlib.Path(builder.data_path)
    if target.exists():
        raise FileExistsError(f"{target} exists; delete it, or choose another folder")
    builder.download_and_prepare()
    return target


def encode_lossless(frames: UInt8[np.ndarray, "F H W 3"]) -> bytes:
    """An mp4 that decodes to exactly ``frames``."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=_FPS, options={"qp": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr24"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
