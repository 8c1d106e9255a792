"""A PNG that shows a long video at a glance: one row of labelled frames per chunk, oldest at the top."""

from fractions import Fraction
from typing import Any

import numpy as np

from helios_jax._warnings import warn_user
from helios_jax.media.outputs import Claim, replacement
from helios_jax.media.pixels import uint8_frames
from helios_jax.media.provenance import PNG_CHUNK, empty_png
from helios_jax.media.rates import frame_rate
from helios_jax.typing import AnyArray, Path
from helios_jax.version import __version__

_LABEL_HEIGHT = 14
_GAP = 2


class ContactSheet:
    """Collects small copies of some frames of each chunk and writes them as one PNG; a context manager.

    Memory is constant: when more than ``max_rows`` rows are kept, every second one is dropped and from
    then on only every second chunk is kept. The newest chunk is always shown, so drift can be seen.
    ``close`` writes the PNG, and so does leaving the ``with`` block, even by an exception.

    Args:
        path: The file, ending in ``.png``. It and its folder are created immediately; the file is removed again if
            nothing is written.
        fps: Frames per second, for the labels.
        columns: Frames per chunk, evenly spaced from the first to the last.
        max_rows: Most rows kept, not counting the newest chunk's.
        tile_width: Width of the small frames in pixels; their height follows from the first chunk. Frames of half this
            width or less are enlarged by a whole factor, without blur, and may then be narrower.
        overwrite: Replace an existing file if this library wrote it; other files are never replaced.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is off, it was not written by this library, or another
            process is writing it.
        ValueError: ``path`` does not end in ``.png``, ``fps`` is not a frame rate, or ``columns`` or ``max_rows`` is
            below 2.
        OSError: The folder cannot be created or written to.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: float | Fraction = 24,
        columns: int = 3,
        max_rows: int = 64,
        tile_width: int = 192,
        overwrite: bool = False,
    ) -> None:
        if columns < 2 or max_rows < 2:
            raise ValueError(f"need at least 2 columns and 2 rows, got columns={columns}, max_rows={max_rows}")
        self.fps = frame_rate(fps)
        self._claim = Claim(path, ".png", start=empty_png(), overwrite=overwrite)
        self.path = self._claim.path
        self.num_frames = 0
        self._columns = columns
        self._max_rows = max_rows
        self._tile_width = tile_width
        self._tile_height = 0  # known from the first chunk
        self._resampling: Any = None  # Pillow's default, which is smooth
        self._num_chunks = 0
        self._stride = 1  # chunks between two kept rows
        self._rows: list[list[tuple[int, Any]]] = []  # (frame number, PIL image) for each tile
        self._newest: list[tuple[int, Any]] | None = None

    def write(self, frames: AnyArray) -> None:
        """Adds a chunk, uint8 [F, H, W, 3]. Raises ValueError for another shape or dtype."""
        from PIL import Image

        frames = uint8_frames(frames)
        _, height, width, _ = frames.shape
        if not self._tile_height:
            if (factor := self._tile_width // width) > 1:
                self._tile_width, self._resampling = factor * width, Image.Resampling.NEAREST
            self._tile_height = max(1, round(self._tile_width * height / width))
        size = (self._tile_width, self._tile_height)
        picks = np.linspace(0, len(frames) - 1, self._columns).round().astype(int).tolist()
        self._newest = [
            (self.num_frames + pick, Image.fromarray(frames[pick]).resize(size, self._resampling)) for pick in picks
        ]
        if self._num_chunks % self._stride == 0:
            self._rows.append(self._newest)
        if len(self._rows) > self._max_rows:
            self._rows = self._rows[::2]
            self._stride *= 2
        self._num_chunks += 1
        self.num_frames += len(frames)

    def close(self) -> None:
        """Writes the PNG if there is at least one chunk; warns if that fails, since the video matters more."""
        try:
            if self._newest is not None:
                rows = self._rows if self._rows[-1] is self._newest else [*self._rows, self._newest]
                self._save(self._draw(rows))
        except OSError as error:
            warn_user(f"the contact sheet {self.path} could not be written: {error.strerror or error}")
            self._newest = None
        finally:
            self._claim.release(remove=self._newest is None)
            self._rows = []

    def __enter__(self) -> "ContactSheet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _save(self, sheet: Any) -> None:
        from PIL import PngImagePlugin

        facts = PngImagePlugin.PngInfo()
        facts.add(PNG_CHUNK, b"helios_jax")
        facts.add_text("Software", f"helios_jax {__version__}")
        self._claim.verify()
        with replacement(self.path) as copy:
            sheet.save(copy, format="PNG", pnginfo=facts)

    def _draw(self, rows: list[list[tuple[int, Any]]]) -> Any:
        from PIL import Image, ImageDraw

        step_x, step_y = self._tile_width + _GAP, self._tile_height + _LABEL_HEIGHT + _GAP
        sheet = Image.new("RGB", (self._columns * step_x - _GAP, len(rows) * step_y - _GAP))
        draw = ImageDraw.Draw(sheet)
        for row, tiles in enumerate(rows):
            for column, (number, image) in enumerate(tiles):
                x, y = column * step_x, row * step_y
                sheet.paste(image, (x, y))
                label = f"frame {number}  {float(number / self.fps):.2f} s"
                draw.text((x + 2, y + self._tile_height + 1), label, fill="white")
        return sheet
