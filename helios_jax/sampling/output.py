"""The result of a call: frames and latents, saved as mp4 files and played in notebooks."""

import base64
import dataclasses
import pathlib
import tempfile
from fractions import Fraction

import numpy as np

from helios_jax.media.pixels import enlargement
from helios_jax.media.provenance import written_by_us
from helios_jax.media.saving import save_video
from helios_jax.sampling.brief import brief_fields
from helios_jax.typing import Float, Path, UInt8
from helios_jax.user_input import user_path

MAX_EMBEDDED_BYTES = 32 * 2**20
"""Largest video that a notebook cell shows; a notebook holds its outputs as text."""

MAX_EMBEDDED_PIXELS = 512 * 2**20
"""Most pixels that are encoded for display: 90 seconds of 384 x 640."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SampleOutput:
    """A finished video; a notebook shows it as a player.

    Attributes:
        frames: uint8 [B,F,H,W,3]; F is the largest 4k + 1 not above 33 frames per chunk, or ``num_frames`` with
            ``exact_frames``.
        latents: float32 [B,T,h,w,C] in model space, generated chunks only.
    """

    frames: UInt8[np.ndarray, "B F H W 3"]
    latents: Float[np.ndarray, "B T h w C"]

    __repr__ = brief_fields

    def save(
        self, path: Path, *, fps: int | Fraction = 24, crf: int = 18, overwrite: bool = False, enlarge: int = 1
    ) -> list[pathlib.Path]:
        """Writes each video of the batch as an mp4 file (H.264).

        Args:
            path: The file, ending in ``.mp4``. A batch of several gets the number of each video before the ending:
                "fox.mp4" becomes "fox-0.mp4", "fox-1.mp4", ...
            fps: Frames per second, such as 24, which the models were trained on, or 29.97.
            crf: Constant rate factor of x264, 0 (largest file) to 51; 18 is visually lossless.
            overwrite: Replace existing files if this library wrote them; other files are never replaced.
            enlarge: Whole factor by which frames are enlarged, without blur, for small videos.

        Returns:
            The files, one for each video.

        Raises:
            FileExistsError: One of them exists and may not be replaced; in that case nothing is written.
            ValueError: Another ending, or ``fps``, ``crf`` or ``enlarge`` out of range.
        """
        target = user_path(path)
        files = [target]
        if len(self.frames) > 1:
            files = [target.with_name(f"{target.stem}-{number}{target.suffix}") for number in range(len(self.frames))]
        for file in files:
            if file.exists() and not overwrite:
                raise FileExistsError(f"{file} exists; choose another path or pass overwrite=True")
            if file.exists() and not written_by_us(file):
                raise FileExistsError(f"{file} was not written by helios_jax and is not replaced; choose another path")
        return [
            save_video(file, frames, fps, crf=crf, overwrite=overwrite, enlarge=enlarge)
            for file, frames in zip(files, self.frames, strict=True)
        ]

    def _repr_html_(self) -> str | None:
        """HTML players for the videos, or ``None`` if they are too large; notebooks then show the ``repr``."""
        if self.frames[..., 0].size > MAX_EMBEDDED_PIXELS:
            return None
        players, size = [], self.frames.shape[2:4]
        with tempfile.TemporaryDirectory() as folder:
            for file in self.save(pathlib.Path(folder) / "video.mp4", crf=23, enlarge=enlargement(*size)):
                data = base64.b64encode(file.read_bytes()).decode()
                players.append(f'<video controls loop src="data:video/mp4;base64,{data}"></video>')
        return "\n".join(players) if sum(map(len, players)) <= MAX_EMBEDDED_BYTES else None
