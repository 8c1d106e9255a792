"""The judge of adversarial distillation: the fake score's network with the heads that read it.

The network reads a noised clip or a crop of one. The context keeps its full size, while the rotary positions of a crop
start at 0 wherever it was cut out, as in the published training (arXiv 2603.04379).
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from helios_jax.config import HistoryConfig
from helios_jax.models.discriminator import Discriminator
from helios_jax.models.transformer import Context, HeliosTransformer
from helios_jax.parallel.execution import Execution
from helios_jax.typing import Array, Float, Sequence


@runtime_checkable
class Judge[P](Protocol):
    """A discriminator together with the network that it reads, as a function."""

    def __call__(
        self, params: P, x: Float[Array, "B T H W C"], timestep: Float[Array, " B"], condition: Any, /
    ) -> Float[Array, "B logits"]:
        """The logits of noised clips.

        Args:
            params: Parameters, a pytree.
            x: Clips, possibly several in a row for each sample of ``condition``.
            timestep: Timestep of each clip.
            condition: Text and context of each sample; passed on unchanged.
        """
        ...


def judge_clips(
    transformer: HeliosTransformer,
    discriminator: Discriminator,
    x: Float[Array, "B T H W C"],
    timestep: Float[Array, " B"],
    *,
    text: Float[Array, "B2 S D"],
    context: Context | None,
    layout: HistoryConfig | None,
    full: Sequence[int],
    execution: Execution,
) -> Float[Array, "B logits"]:
    """The logits of noised clips or crops: what a ``Judge`` computes after it has assembled its networks.

    Args:
        transformer: The fake score.
        discriminator: Its heads.
        x: Clips; several in a row for each sample of ``text`` and ``context``.
        timestep: Timestep of each clip.
        text: Embedded text, from ``transformer.condition_embedder.text``.
        context: From ``transformer.context``, at full size; ``None`` for clips without history.
        layout: Layout of the history; ``None`` without one.
        full: Latent rows and columns of the context. The positions of ``x`` start at 0 wherever it was cropped.
        execution: How the blocks are run.
    """
    copies = len(x) // len(text)
    if context is not None:
        context = dataclasses.replace(context, tokens=jnp.repeat(context.tokens, copies, 0))
    frames, rows, columns = (
        side // step for side, step in zip(x.shape[1:4], transformer.config.patch_size, strict=True)
    )
    call = {
        "text": jnp.repeat(text, copies, 0),
        "context": context,
        "rope": transformer.rope(layout, full, x.shape[2:4], frames),
        "execution": execution,
    }
    hooks = discriminator.config.hooks
    if not hooks:
        return discriminator(transformer.denoise(x, timestep, **call), None)
    velocity, hidden = transformer.denoise(x, timestep, **call, taps=hooks)
    return discriminator(velocity, hidden.reshape(*hidden.shape[:2], frames, rows, columns, hidden.shape[-1]))
