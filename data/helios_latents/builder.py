"""The TFDS builder of ``helios_latents``: what a record holds, and how Beam fills whole splits.

``LatentWriter`` uses the same features and metadata to write a dataset file by file.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

from helios_jax.data.helios_latents.record import CHUNK_FRAMES


def _array(*shape: int | None) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=ml_dtypes.bfloat16, encoding="bytes")


class HeliosLatents(tfds.core.GeneratorBasedBuilder):
    """Encoded clips, one split per latent size.

    Args:
        splits: Split name -> source of its examples, anything that TFDS accepts from ``_split_generators``: an
            iterable of (key, example), or a Beam transform or collection of them. Not needed for reading.
        **kwargs: See ``tfds.core.GeneratorBasedBuilder``; ``data_dir`` is the folder.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Chunked latents, anchor, text embeddings."}  # noqa: RUF012

    def __init__(self, *, splits: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self._examples = dict(splits or {})
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Videos as latents of Wan2.1's VAE in chunks of 33 frames, with text embeddings.",
            homepage="https://arxiv.org/abs/2603.04379",
            features=tfds.features.FeaturesDict(
                {
                    "uid": tfds.features.Text(),
                    "caption": tfds.features.Text(),
                    "fps": np.float32,
                    "height": np.int32,
                    "width": np.int32,
                    "latents": _array(None, CHUNK_FRAMES, None, None, None),
                    "anchor": _array(None, None, None),
                    "embeds": _array(None, None),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # Nothing is downloaded.
        return self._examples

    def _generate_examples(self) -> Any:
        raise NotImplementedError("the examples come with the splits given to HeliosLatents")
