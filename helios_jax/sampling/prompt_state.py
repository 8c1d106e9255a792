"""The text side of a stream: from prompts to the embeddings of successive chunks.

Texts e_1 .. e_n with weights w_1 .. w_n become the mean of their embeddings,

    e = sum_i w_i e_i / sum_i w_i.                                                                 (1)
"""

import contextlib
import dataclasses
from collections.abc import Generator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.models.tokenization import TextEncoder
from helios_jax.parallel.host_memory import fetched
from helios_jax.sampling.inputs import SampleInputs, check_embeds, check_texts, weighted_texts
from helios_jax.sampling.prompts import NEGATIVE_PROMPT, PromptSchedule
from helios_jax.sampling.timeline import EmbeddingTimeline, TimelineState
from helios_jax.typing import AnyArray, Array, DType, Float

NewPrompt = str | Sequence[str] | Sequence[tuple[str, float]] | AnyArray
"""A prompt that is set while a video runs: a text, one for each video, weighted texts, or embeddings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptEncoder:
    """Turns the prompts of one call into embeddings of one shape and dtype.

    Attributes:
        text_encoder: Prompts -> embeddings; ``None`` when the checkpoint has none. It may be parked in host memory.
        batch: Videos generated at once.
        max_tokens: Length that texts are padded or cut to.
        width: Dimension of embeddings.
        dtype: Compute dtype of the transformer, which given embeddings are rounded to.
    """

    text_encoder: TextEncoder | None
    batch: int
    max_tokens: int
    width: int
    dtype: DType

    @contextlib.contextmanager
    def fetched(self) -> Generator["PromptEncoder"]:
        """Gives the encoder with its network on the device, for several calls of ``texts``."""
        with fetched(self.text_encoder) as text_encoder:
            yield dataclasses.replace(self, text_encoder=text_encoder)

    def texts(self, texts: str | Sequence[str]) -> Float[Array, "B S E"]:
        """Embeddings of one text for the whole batch, or of one text per video."""
        assert self.text_encoder is not None, "the request was checked"
        each = [texts] * self.batch if isinstance(texts, str) else list(texts)
        with fetched(self.text_encoder) as text_encoder:
            return text_encoder(each, self.max_tokens)

    def weighted(self, texts: Sequence[tuple[str, float]]) -> Float[Array, "B S E"]:
        """The mean (1) of the embeddings of several texts, for the whole batch. The weights sum to one."""
        with self.fetched() as encoder:
            embeds = [encoder.texts(text) for text, _ in texts]
        return _mean(embeds, jnp.asarray([weight for _, weight in texts], jnp.float32))

    def embeds(self, embeds: AnyArray) -> Float[Array, "B S E"]:
        """Embeddings from elsewhere, in the transformer's dtype."""
        return jnp.asarray(embeds, self.dtype)


@jax.jit
def _mean(embeds: Sequence[Float[Array, "B S E"]], weights: Float[Array, " texts"]) -> Float[Array, "B S E"]:
    terms = [weight * each.astype(jnp.float32) for weight, each in zip(weights, embeds, strict=True)]
    return sum(terms[1:], start=terms[0]).astype(embeds[0].dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptState:
    """The prompts of a stream.

    Attributes:
        encoder: For prompts that are set live.
        timeline: Embeddings of the prompts, chunk by chunk.
        negative: Embeddings of the negative prompts; ``None`` without guidance.
    """

    encoder: PromptEncoder
    timeline: EmbeddingTimeline
    negative: Float[AnyArray, "B S E"] | None

    @classmethod
    def start(cls, encoder: PromptEncoder, inputs: SampleInputs, *, guided: bool) -> "PromptState":
        """Encodes the prompts of a checked call; the negative ones only if it is guided."""
        only_embeds = inputs.prompt_embeds is not None and (not guided or inputs.negative_prompt_embeds is not None)
        with contextlib.nullcontext(encoder) if only_embeds else encoder.fetched() as ready:
            timeline, negative = cls._encoded(ready, inputs, guided=guided)
        return cls(encoder=encoder, timeline=timeline, negative=negative)

    @classmethod
    def resumed(
        cls, encoder: PromptEncoder, timeline: TimelineState, negative: Float[np.ndarray, "B S E"] | None
    ) -> "PromptState":
        """Continues from a state whose arrays are in host memory."""
        state = timeline.map(lambda arrays: [jnp.asarray(array) for array in arrays])
        return cls(
            encoder=encoder,
            timeline=EmbeddingTimeline.resumed(state),
            negative=None if negative is None else jnp.asarray(negative),
        )

    @staticmethod
    def _encoded(
        encoder: PromptEncoder, inputs: SampleInputs, *, guided: bool
    ) -> tuple[EmbeddingTimeline, Float[AnyArray, "B S E"] | None]:
        """Embeddings of the prompts and of the negative ones."""
        prompt, negative = inputs.prompt, None
        if inputs.prompt_embeds is not None:
            timeline = EmbeddingTimeline(encoder.embeds(inputs.prompt_embeds))
        elif isinstance(prompt, PromptSchedule):
            timeline = prompt.timeline([encoder.texts(text) for text in prompt.prompts])
        else:
            assert prompt is not None, "the request was checked"
            timeline = EmbeddingTimeline(encoder.texts(prompt))
        if guided and inputs.negative_prompt_embeds is not None:
            negative = encoder.embeds(inputs.negative_prompt_embeds)
        elif guided:
            given = inputs.negative_prompt
            negative = encoder.texts(NEGATIVE_PROMPT if given is None else given)
        return timeline, negative

    def encode(self, prompt: NewPrompt) -> Float[Array, "B S E"]:
        """Embeddings of a new prompt; see ``Stream.set_prompt``."""
        encoder = self.encoder
        if isinstance(prompt, jax.Array | np.ndarray) and prompt.dtype.kind not in "OUS":
            check_embeds(prompt, "the new prompt", batch=encoder.batch, width=encoder.width)
            return encoder.embeds(prompt)
        if isinstance(prompt, PromptSchedule):
            raise ValueError("set_prompt takes one prompt at a time: a PromptSchedule is given to stream()")
        if encoder.text_encoder is None:
            raise ValueError("this checkpoint was loaded without a text encoder: set_prompt needs embeddings")
        if (weighted := weighted_texts(prompt, "the new prompt")) is not None:
            return encoder.weighted(weighted)
        return encoder.texts(check_texts(prompt, "the new prompt", encoder.batch))
