"""Writing ``helios_ode`` one file at a time, as ``helios_latents`` is written."""

from collections.abc import Mapping
from typing import Any

from helios_jax.data.helios_latents.record import Size
from helios_jax.data.helios_latents.writer import LatentWriter
from helios_jax.data.helios_ode.builder import HeliosOde
from helios_jax.typing import Path


class OdeWriter(LatentWriter):
    """The files of one data set, in ``folder/helios_ode/1.0.0``.

    Args:
        folder: As for ``LatentWriter``.
        files: As for ``LatentWriter``.
        settings: As for ``LatentWriter``.
        levels: Levels of the pyramid.

    Raises:
        ValueError: The folder was begun with other settings.
    """

    def __init__(self, folder: Path, files: Mapping[Size, int], settings: Mapping[str, Any], levels: int = 3) -> None:
        self._levels = levels
        super().__init__(folder, files, {"levels": levels, **settings})

    def _make_builder(self, folder: Any) -> HeliosOde:
        return HeliosOde(levels=self._levels, data_dir=folder)
