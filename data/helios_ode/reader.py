"""Reading ``helios_ode``: random access to the records of each latent size."""

from helios_jax.data.helios_latents.reader import LatentFiles, open_dataset
from helios_jax.data.helios_latents.record import Size
from helios_jax.data.helios_ode.record import OdeRecord
from helios_jax.typing import Path


class OdeFiles(LatentFiles):
    """Records of one latent size, each an ``OdeRecord``; see ``LatentFiles``."""

    record_type = OdeRecord


def open_ode(folder: Path) -> dict[Size, OdeFiles]:
    """Opens a data set of recorded trajectories.

    Args:
        folder: The ``--out`` folder of ``helios-prepare``, or the versioned folder inside it.

    Returns:
        The records of each latent size.

    Raises:
        FileNotFoundError: There is no (finished) data set, or one of its files is missing.
        ValueError: The metadata is damaged, or the folder holds another kind of data set.
    """
    fields = {"uid", "caption", "embeds", "chunks", "first", "later"}
    return open_dataset(folder, "helios_ode", fields, OdeFiles)
