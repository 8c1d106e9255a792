"""The inputs of a video, and checks of prompts and embeddings before any work starts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.sampling.brief import brief_fields
from helios_jax.sampling.noise import NoiseSource
from helios_jax.sampling.prompts import PromptSchedule
from helios_jax.typing import AnyArray
from helios_jax.user_input import finite_number, whole_number, yes_or_no

MAX_LOOKAHEAD = 8
"""Most chunks dispatched ahead; each keeps its frames on the device."""

MAX_WEIGHTED_TEXTS = 4
"""Most texts of a weighted prompt; each is encoded."""

Prompt = str | Sequence[str] | PromptSchedule


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SampleInputs:
    """The inputs of a video, as the user gave them.

    Attributes:
        prompt: A text, a list of texts (one video each), or a ``PromptSchedule``.
        negative_prompt: The prompt that guidance steers away from, or one for each video; ``None``: the published one,
            ``NEGATIVE_PROMPT``.
        prompt_embeds: Embeddings [B,S,E] instead of ``prompt``.
        negative_prompt_embeds: Embeddings instead of ``negative_prompt``.
        image: Image to start from: path, PIL image, or uint8/float array [H,W,3] (I2V).
        video: Clip to continue: path, or uint8/float array [F,H,W,3] (V2V); or one clip for each prompt [B,F,H,W,3].
    """

    prompt: Prompt | None = None
    negative_prompt: str | Sequence[str] | None = None
    prompt_embeds: AnyArray | None = None
    negative_prompt_embeds: AnyArray | None = None
    image: Any = None
    video: Any = None

    __repr__ = brief_fields

    @property
    def batch(self) -> int:
        """Number of videos.

        Raises:
            ValueError: There is neither a prompt nor embeddings, or they have the wrong type.
        """
        if self.prompt is None:
            if self.prompt_embeds is None:
                raise ValueError("give prompt or prompt_embeds; for a video without text use prompt=''")
            shape = _shape_of(self.prompt_embeds)
            if len(shape) != 3 or shape[0] == 0:
                raise ValueError(f"prompt_embeds has shape {shape}; [batch, tokens, width] is needed")
            return shape[0]
        if isinstance(self.prompt, PromptSchedule):
            return 1
        return 1 if isinstance(self.prompt, str) else len(check_texts(self.prompt, "prompt"))

    def check(self, *, width: int, has_text_encoder: bool, guided_tokens: int | None) -> None:
        """Checks prompts and embeddings.

        Args:
            width: Dimension of embeddings.
            has_text_encoder: Whether texts can be encoded.
            guided_tokens: In a guided call, the length that texts are padded to; otherwise ``None``: the negative
                prompt is not used, and only has to be text.

        Raises:
            ValueError: They cannot be used; the message says what was given and what is needed.
        """
        batch = self.batch
        _check_one("prompt", self.prompt, self.prompt_embeds, batch, width, has_text_encoder)
        if guided_tokens is None:
            if self.negative_prompt is not None and not isinstance(self.negative_prompt, PromptSchedule):
                check_texts(self.negative_prompt, "negative_prompt")
            return
        if isinstance(self.negative_prompt, PromptSchedule):
            raise ValueError("negative_prompt is a PromptSchedule: the negative prompt is the same for all chunks")
        _check_one("negative_prompt", self.negative_prompt, self.negative_prompt_embeds, batch, width, has_text_encoder)
        tokens, negative_tokens = (
            guided_tokens if embeds is None else np.shape(embeds)[1]
            for embeds in (self.prompt_embeds, self.negative_prompt_embeds)
        )
        if tokens != negative_tokens:
            raise ValueError(
                f"the prompt is {tokens} tokens long and the negative prompt {negative_tokens}, but guidance runs "
                "both as one batch: give embeddings of one length, and max_text_tokens of that length for texts"
            )


def check_texts(texts: Any, name: str, batch: int | None = None) -> str | list[str]:
    """One text for all videos as it is, or a list of texts, one for each of ``batch`` videos.

    Raises:
        ValueError: It is something else, or contains a lone surrogate, which tokenizers cannot encode.
    """
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, Sequence | np.ndarray) or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"{name} must be a str or a list of str (prompt also a PromptSchedule), got {texts!r:.200}")
    if len(listed) == 0:
        raise ValueError(f"{name} is an empty list: give at least one text")
    for text in listed:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}={text!r:.100} is not valid Unicode: {error.reason}") from None
    if batch is not None and not isinstance(texts, str) and len(listed) != batch:
        raise ValueError(f"{name} has {len(listed)} texts for a batch of {batch}; give one for each, or one str")
    return texts if isinstance(texts, str) else list(listed)


def weighted_texts(prompt: Any, name: str) -> list[tuple[str, float]] | None:
    """Texts with their weights, which are scaled to a sum of one; texts of weight 0 are left out.

    Returns:
        The texts; ``None`` if the prompt is no list that holds pairs.

    Raises:
        ValueError: An entry is not a text and a number from 0 on, all weights are 0, or there are more than 4 texts.
    """
    if not isinstance(prompt, list | tuple) or not any(isinstance(entry, list | tuple) for entry in prompt):
        return None
    for entry in prompt:
        if not isinstance(entry, list | tuple) or len(entry) != 2 or not isinstance(entry[0], str):
            raise ValueError(f"{name} has the entry {entry!r:.100}; weighted texts are pairs of a text and its weight")
    if len(prompt) > MAX_WEIGHTED_TEXTS:
        raise ValueError(f"{name} has {len(prompt)} weighted texts; at most {MAX_WEIGHTED_TEXTS} can be mixed")
    check_texts([text for text, _ in prompt], name)
    weights = [finite_number(weight, f"the weight of {text!r:.40}", at_least=0.0) for text, weight in prompt]
    total = sum(weights)
    if not 0 < total < float("inf"):
        raise ValueError(f"{name}: the weights sum to {total}; at least one must be above 0")
    return [(text, weight / total) for (text, _), weight in zip(prompt, weights, strict=True) if weight > 0]


def _shape_of(embeds: Any) -> tuple[int, ...]:
    try:
        return np.shape(embeds)
    except ValueError as error:  # nested lists of different lengths
        raise ValueError(f"prompt_embeds is not an array: {error}") from error


def check_embeds(embeds: Any, name: str, *, batch: int, width: int) -> None:
    """Checks embeddings that the caller passes, on the host: shape, dtype, and that all values are finite.

    Raises:
        ValueError: They cannot be used.
    """
    array = embeds if isinstance(embeds, jax.Array) else np.asarray(embeds)
    if array.ndim != 3 or array.shape[0] != batch or array.shape[2] != width:
        raise ValueError(f"{name} has shape {array.shape}; [{batch}, tokens, {width}] is needed")
    if array.shape[1] == 0:
        raise ValueError(f"{name} has shape {array.shape}: at least one token is needed, even for an empty text")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}; floating-point embeddings are needed")
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(array).astype(np.float32))
    if not finite.all():
        bad = np.argwhere(~finite)[0].tolist()
        raise ValueError(f"{name} holds {finite.size - finite.sum()} values that are not finite, the first at {bad}")


def check_options(*, lookahead: Any, noise: Any, progress: Any, **callbacks: Any) -> None:
    """Checks the arguments of a call that are neither inputs nor settings.

    Raises:
        ValueError: One has the wrong type, or ``lookahead`` is not from 0 to 8.
    """
    whole_number(lookahead, "lookahead", at_least=0, at_most=MAX_LOOKAHEAD)
    yes_or_no(progress, "progress")
    if not isinstance(noise, NoiseSource | None):
        raise ValueError(f"noise={noise!r:.200} must have the methods of a NoiseSource, normal and uniform")
    for name, callback in callbacks.items():
        if callback is not None and not callable(callback):
            raise ValueError(f"{name}={callback!r:.200} must be a function")


def _check_one(
    name: str, text: Prompt | None, embeds: AnyArray | None, batch: int, width: int, has_text_encoder: bool
) -> None:
    """Checks one prompt, given as text or as embeddings."""
    if text is not None and embeds is not None:
        raise ValueError(f"{name} and {name}_embeds are both given; use one")
    if embeds is not None:
        check_embeds(embeds, f"{name}_embeds", batch=batch, width=width)
    elif not has_text_encoder:
        raise ValueError(f"this checkpoint was loaded without a text encoder: give {name}_embeds")
    elif isinstance(text, PromptSchedule):
        check_texts(text.prompts, "the prompts of a PromptSchedule")
    elif text is not None:
        check_texts(text, name, batch)
