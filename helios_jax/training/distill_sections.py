"""Stage 3: the chunks of a rollout, and the context that the generator's own chunks make for the next one."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from helios_jax.context import History
from helios_jax.distillation.regularisers import LevelEnd
from helios_jax.distillation.rollout import RolloutDraws
from helios_jax.distillation.walk import Route, Visit
from helios_jax.training.distill_settings import DistillSettings
from helios_jax.training.injection import Contexts
from helios_jax.training.methods import CONTEXT, fold
from helios_jax.training.methods.distill import rollout_draws
from helios_jax.typing import Array, Float, Int, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One chunk of a rollout.

    Attributes:
        history: The generator's context.
        routes: The steps that its samples took.
        visits: The calls that a gradient reaches.
        x: The chunk.
        ends: End points of the visited levels, if a regulariser reads them.
    """

    history: History
    routes: tuple[Route, ...]
    visits: tuple[Visit, ...]
    x: Float[Array, "B T H W C"]
    ends: tuple[LevelEnd, ...] = ()


def joined(sections: Sequence[Section]) -> Float[Array, "B T H W C"]:
    """The chunks of sections as one clip."""
    return sections[0].x if len(sections) == 1 else jnp.concatenate([section.x for section in sections], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def own_context(
    settings: DistillSettings, history: History, keys: Key[Array, " B"], section: Int[Array, ""]
) -> tuple[Contexts, RolloutDraws]:
    """The context from the generator's own chunks, damaged like a real one, and the noise of the next chunk."""
    context, past = settings.context, history.frames.shape[1:]
    shape = (context.layout.chunk_frames, *past[1:])
    first = fold(keys[0], CONTEXT, section)
    draws = jax.vmap(lambda key: context.draw(fold(key, CONTEXT, section), past, first))(keys)
    noise = jax.vmap(lambda key: rollout_draws(key, settings.scheduler, shape, section))(keys)
    return context.damaged(history, draws), noise


@functools.partial(jax.jit, static_argnums=2)
def remember(history: History, x: Float[Array, "B T H W C"], anchor: bool) -> History:
    """``sampling.chunk.remember``, but without donating the history, which the backward pass may still need."""
    history = history.push(x)
    return history.with_anchor(x[:, :1]) if anchor else history
