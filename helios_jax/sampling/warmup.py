"""Compilation in advance: a few cheap chunks that need the same programs as the sampling to come."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from helios_jax.config import SchedulerConfig
from helios_jax.models.network import Network
from helios_jax.models.tokenization import TextEncoder, possible_keys
from helios_jax.models.transformer import HeliosTransformer
from helios_jax.sampling.settings import SampleSettings
from helios_jax.sampling.stream import Stream


@runtime_checkable
class Streams(Protocol):
    """The part of a pipeline that warm-up uses."""

    scheduler: SchedulerConfig
    transformer: Network[HeliosTransformer]
    text_encoder: TextEncoder | None

    @property
    def chunk_frames(self) -> int:
        """Pixel frames of one chunk."""
        ...

    @property
    def stream(self) -> Callable[..., Stream]:
        """The method ``HeliosPipeline.stream``."""
        ...


def compile_programs(
    pipe: Streams,
    settings: SampleSettings,
    *,
    batch: int,
    conditioning: Literal["image", "video"] | None,
) -> float:
    """Samples one chunk, and one more for each length of text that has its own programs.

    Args:
        pipe: The pipeline.
        settings: Settings of the sampling to come; length, steps and seed are ignored.
        batch: Number of prompts that will be sampled together.
        conditioning: What sampling will start from.

    Returns:
        The time that it took, in seconds.
    """
    start = time.perf_counter()
    frames, levels = pipe.chunk_frames, pipe.scheduler.num_levels
    lengths = possible_keys(settings.max_text_tokens)
    settings = dataclasses.replace(
        settings,
        num_frames=frames * (1 + len(lengths)),
        # One step per level would do, but zero-init skips the network in the first two steps of the first level.
        steps=(3,) + (1,) * (levels - 1) if levels > 1 else 3,
        amplify_first_chunk=False,
    )
    black = np.zeros((frames, settings.height, settings.width, 3), np.uint8)
    embeds = np.zeros((batch, settings.max_text_tokens, pipe.transformer.config.text_dim), np.float32)
    text: dict[str, Any] = {"prompt": [""] * batch, "negative_prompt": ""}
    if pipe.text_encoder is None:
        text = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds}
    stream = pipe.stream(
        **text,
        image=black[0] if conditioning == "image" else None,
        video=black if conditioning == "video" else None,
        settings=settings,
    )
    next(stream)
    for length in lengths:
        # Embeddings are padded with equal tokens: this many tokens differ from the padding.
        longer = embeds.copy()
        longer[:, : length - 1] = 1
        stream.set_prompt(longer, blend_chunks=0)
        next(stream)
    return time.perf_counter() - start
