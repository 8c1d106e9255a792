"""A picture of several videos: a row of frames under each caption, with frame numbers above the first row."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from helios_jax.typing import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

FONT_SIZE = 12
_LINE = 15
_GAP = 4


def caption_sheet(videos: UInt8[np.ndarray, "B F H W 3"], captions: Sequence[str], numbers: Sequence[int]) -> "Image":
    """Draws the sheet.

    Args:
        videos: The frames to show of each video.
        captions: The caption of each video.
        numbers: The number of each frame in its video, from 1.

    Raises:
        ValueError: Captions or numbers do not fit the videos.
    """
    from PIL import Image, ImageDraw, ImageFont

    count, frames, height, width, _ = videos.shape
    if len(captions) != count or len(numbers) != frames:
        given = f"{len(captions)} captions and {len(numbers)} numbers"
        raise ValueError(f"{count} videos of {frames} frames need as many captions and numbers, got {given}")
    font = ImageFont.load_default(FONT_SIZE)
    texts = [_wrapped(caption, frames * width - 4, font.getlength) for caption in captions]
    rows = [len(text) * _LINE + height + 2 * _GAP for text in texts]
    sheet = Image.new("RGB", (frames * width, _LINE + sum(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, number in enumerate(numbers):
        label = f"frame {number}" if column == 0 else str(number)
        draw.text((column * width + 2, 1), label, fill="black", font=font)
    top = _LINE
    for video, text, row in zip(videos, texts, rows, strict=True):
        for line, words in enumerate(text):
            draw.text((2, top + _GAP + line * _LINE), words, fill="black", font=font)
        tiles = np.concatenate(list(video), axis=1)
        sheet.paste(Image.fromarray(tiles), (0, top + row - height))
        top += row
    return sheet


def _wrapped(text: str, width: float, length: Callable[[str], float]) -> list[str]:
    """Wraps text between words into lines of at most ``width`` pixels; a longer word gets its own line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if length(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
