"""Windows: the part of a clip that one sample shows.

A window around chunk k of a clip with latent frames z (9 per chunk), as in Helios's training (arXiv 2603.04379):

    target = z[9k : 9k + 9],   history = z[9k - 19 : 9k],   anchor = z[0]                  (1)

with zeros before the start of the clip, and a zero anchor for k = 0. The sampler's context holds the same frames
when it generates chunk k.
"""

from collections.abc import Sequence

import numpy as np

from helios_jax.data.helios_latents.record import LatentRecord
from helios_jax.training.batch import LatentBatch, LatentPair, PromptBatch
from helios_jax.training.text_formats import TextFormat
from helios_jax.typing import Float


def cut_window(
    latents: Float[np.ndarray, "S T h w C"], anchor: Float[np.ndarray, "h w C"], chunk: int, history_frames: int
) -> tuple[Float[np.ndarray, "T h w C"], Float[np.ndarray, "{history_frames} h w C"], Float[np.ndarray, "1 h w C"]]:
    """Target, history and anchor of a clip's chunk, by (1)."""
    frames = latents.reshape(-1, *latents.shape[2:])
    first = chunk * latents.shape[1]
    past = frames[max(0, first - history_frames) : first]
    history = np.zeros((history_frames, *past.shape[1:]), latents.dtype)
    history[history_frames - len(past) :] = past
    return latents[chunk], history, (anchor if chunk else np.zeros_like(anchor))[None]


def window_batch(
    records: Sequence[LatentRecord], draws: Sequence[float], *, history_frames: int, text: TextFormat
) -> LatentBatch:
    """A batch with one window of each record.

    Args:
        records: Clips of one latent size.
        draws: A number in [0, 1) for each record, which decides its chunk and how its text is used.
        history_frames: Latent frames of history.
        text: How captions become arrays.
    """
    chunks, rest = _chunks(records, draws)
    return _windows(records, chunks, history_frames, text(records, rest))


def window_pairs(
    records: Sequence[LatentRecord], draws: Sequence[float], *, history_frames: int, text: TextFormat
) -> LatentPair:
    """Two windows of each record, whose chunks are independent and may be the same; see ``window_batch``."""
    first, draws = _chunks(records, draws)
    second, rest = _chunks(records, draws)
    prompts = text(records, rest)
    return LatentPair(
        generator=_windows(records, first, history_frames, prompts),
        critic=_windows(records, second, history_frames, prompts),
    )


def _chunks(records: Sequence[LatentRecord], draws: Sequence[float]) -> tuple[list[int], list[float]]:
    """A chunk of each record, uniform among the clip's chunks, and what is left of the draws."""
    # The integer part of a scaled draw is the chunk. The remaining fraction is again uniform and independent of the
    # chunk, so it serves for the next choice: one draw per sample is enough.
    places = [divmod(draw * len(record.latents), 1.0) for record, draw in zip(records, draws, strict=True)]
    return [int(chunk) for chunk, _ in places], [rest for _, rest in places]


def _windows(
    records: Sequence[LatentRecord], chunks: Sequence[int], history_frames: int, prompts: PromptBatch
) -> LatentBatch:
    windows = [
        cut_window(record.latents, record.anchor, chunk, history_frames)
        for record, chunk in zip(records, chunks, strict=True)
    ]
    target, history, anchor = (np.stack(parts) for parts in zip(*windows, strict=True))
    numbers = np.array(chunks, np.int32)
    return LatentBatch(target=target, history=history, anchor=anchor, text=prompts, chunk=numbers)
