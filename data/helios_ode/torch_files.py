"""Import of the original implementation's recorded trajectories, read without PyTorch (``helios_latents.torch_files``).

A file ``<name>_<index>.pt`` holds a dict: "prompt_raw", "prompt_embed" [1, tokens, width], "latent_window_size" 9, and
"ode_latents", a list over chunks of lists over levels of {"latents" [K + 1, 1, C, 9, h, w], "timesteps" [K]}. The last
sample is the level's end point. Noise levels are not stored; they follow from the timesteps, since on a level with
timesteps t_first ... t_last

    t = t_last + s (t_first - t_last)                                                          (1)

for the shifted noise level s. (The original looks up the nearest entry of a table of 1000; the difference is at most
0.13 %.)
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from helios_jax.config import SchedulerConfig
from helios_jax.data.helios_latents.record import Size
from helios_jax.data.helios_latents.torch_files import num_tokens, read_torch_file
from helios_jax.data.helios_latents.writer import Failure
from helios_jax.data.helios_ode.record import LevelPoints, Levels, OdeRecord
from helios_jax.diffusion.pyramid import pyramid_levels
from helios_jax.typing import Path
from helios_jax.user_input import user_path

_NEEDED = ("prompt_raw", "prompt_embed", "ode_latents")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchOde:
    """One file.

    Attributes:
        path: The file.
        uid: Its path within the folder, without the ending.
    """

    path: pathlib.Path
    uid: str

    def read(self) -> OdeRecord:
        """The file as a record.

        Raises:
            FileNotFoundError: The file is gone.
            ValueError: It does not hold trajectories, a prompt and its embeddings.
        """
        content = read_torch_file(self.path)
        if not isinstance(content, dict) or any(name not in content for name in _NEEDED):
            found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{self.path} holds {found}; need {', '.join(_NEEDED)}")
        caption, embeds, chunks = (content[name] for name in _NEEDED)
        if not isinstance(caption, str) or getattr(embeds, "ndim", 0) not in (2, 3):
            raise ValueError(f"{self.path}: prompt_raw must be a string and prompt_embed an array [1, tokens, width]")
        embeds = embeds.reshape(-1, embeds.shape[-1])
        try:
            levels = [[_points(level, number) for number, level in enumerate(chunk)] for chunk in chunks]
            first, *later = levels
            record = OdeRecord(
                uid=self.uid,
                caption=caption,
                embeds=embeds[: num_tokens(embeds)],
                first=tuple(first),
                later=_joined(later) if later else tuple(_no_chunks(level) for level in first),
            )
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{self.path}: ode_latents cannot be used: {error}") from error
        return record


def find_torch_ode(folder: Path) -> Sequence[TorchOde]:
    """The ``.pt`` files in a folder and its subfolders, in the order of their names.

    Raises:
        FileNotFoundError: There is no such file, or no such folder.
    """
    folder = user_path(folder, "from_ode_pt")
    found = [
        TorchOde(path=path, uid=path.relative_to(folder).with_suffix("").as_posix())
        for path in sorted(folder.rglob("*.pt"))
    ]
    if not found:
        raise FileNotFoundError(f"no .pt file in {folder}")
    return found


def import_torch_ode(files: Sequence[TorchOde], size: Size) -> Iterator[OdeRecord | Failure]:
    """Reads files whose latents are of ``size``; yields a record or a failure for each."""
    for file in files:
        try:
            record = file.read()
            record.check(size)
            yield record
        except ValueError as error:
            yield Failure(uid=file.uid, error=str(error))


def _points(level: Any, number: int) -> LevelPoints:
    """One chunk on one level, as one chunk of points."""
    latents, timesteps = level["latents"], np.asarray(level["timesteps"], np.float32)
    if latents.ndim != 6 or latents.shape[1] != 1:
        raise ValueError(f"latents of shape {list(latents.shape)}; need [points + 1, 1, channels, 9, rows, columns]")
    tables = pyramid_levels(SchedulerConfig.distilled())
    if number >= len(tables):
        raise ValueError(f"more than {len(tables)} levels")
    first, last = tables[number].timesteps[[0, -1]]
    sigmas = (timesteps.astype(np.float64) - last) / (first - last)
    return LevelPoints(
        latents=np.moveaxis(latents[:, 0], 1, -1)[None], timesteps=timesteps, sigmas=sigmas.astype(np.float32)
    )


def _joined(chunks: Sequence[Sequence[LevelPoints]]) -> Levels:
    """The points of several chunks, which must be at the same timesteps."""
    joined = []
    for levels in zip(*chunks, strict=True):
        if any(not np.array_equal(level.timesteps, levels[0].timesteps) for level in levels):
            raise ValueError("its later chunks have different timesteps")
        joined.append(dataclasses.replace(levels[0], latents=np.concatenate([level.latents for level in levels])))
    return tuple(joined)


def _no_chunks(level: LevelPoints) -> LevelPoints:
    return dataclasses.replace(level, latents=level.latents[:0])
