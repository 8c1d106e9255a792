"""The TFDS builder of ``helios_ode``: what a record holds. ``OdeWriter`` writes the files."""

from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

from helios_jax.data.helios_latents.record import CHUNK_FRAMES


class HeliosOde(tfds.core.GeneratorBasedBuilder):
    """Recorded trajectories, one split per latent size.

    Args:
        levels: Levels of the pyramid.
        **kwargs: See ``tfds.core.GeneratorBasedBuilder``; ``data_dir`` is the folder.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Points of a teacher's trajectories, text embeddings."}  # noqa: RUF012

    def __init__(self, *, levels: int = 3, **kwargs: Any) -> None:
        self._levels = levels
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        def level(chunks: int | None) -> dict[str, Any]:
            return {
                "latents": _array(chunks, None, CHUNK_FRAMES, None, None, None),
                "timesteps": tfds.features.Tensor(shape=(None,), dtype=np.float32),
                "sigmas": tfds.features.Tensor(shape=(None,), dtype=np.float32),
            }

        def levels(chunks: int | None) -> dict[str, Any]:
            return {f"level{number}": level(chunks) for number in range(self._levels)}

        return tfds.core.DatasetInfo(
            builder=self,
            description="Trajectories of a teacher on the levels of the pyramid, at the steps of its student.",
            homepage="https://arxiv.org/abs/2603.04379",
            features=tfds.features.FeaturesDict(
                {
                    "uid": tfds.features.Text(),
                    "caption": tfds.features.Text(),
                    "embeds": _array(None, None),
                    "chunks": np.int32,
                    "first": levels(1),
                    "later": levels(None),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        raise NotImplementedError("OdeWriter writes the files")

    def _generate_examples(self) -> Any:
        raise NotImplementedError("OdeWriter writes the files")


def _array(*shape: int | None) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=ml_dtypes.bfloat16, encoding="bytes")
