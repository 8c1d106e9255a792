"""Stage 3: what regularisers and a reward change in an update of the generator. Without any, nothing.

For a sample x of the generator, with x' its re-encoded chunk or x itself (``distillation.regularisers``), r the factors
of a reward (``distillation.rewards``) and L the sum of the other regularisers, the cotangent that is pulled back is

    c = r (dL_DMD / dx'  +  dL_GAN / dx')  +  dL / dx                                                     (1)

and the end points of lower levels have cotangents of their own, from consistency. The critic is trained on x.

The VAE stays on the device: in bfloat16 the published one takes 0.25 GB. It is called after the rollout, when the
generator has left, and each call decodes or encodes one chunk of the batch. A reward runs on the host or where it
likes, and the host waits for it; with several processes each of them scores the whole batch.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from helios_jax.distillation.moments import split_chunks
from helios_jax.distillation.regularisers import LevelEnd, Regularisers, reencode, regulariser_cotangents
from helios_jax.distillation.rewards import reward_weights, weigh
from helios_jax.models.network import Network
from helios_jax.models.vae import WanVae
from helios_jax.parallel.mesh import on_mesh_of, readable
from helios_jax.sampling.decoding import decode_chunk
from helios_jax.training.batch import LatentBatch, PromptBatch
from helios_jax.training.distill_sections import Section, joined
from helios_jax.training.distill_settings import DistillSettings
from helios_jax.training.metrics import Metrics
from helios_jax.training.text_formats import decode_captions
from helios_jax.typing import AnyArray, Array, Float

Cotangent = Float[Array, "B T H W C"]

_WEIGHED = "loss", "gan/generator_loss"
"""Metrics that a reward weighs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a reward thinks of a batch.

    Attributes:
        factors: r of equation (1).
        scores: The scores that they follow from, whose means are logged.
    """

    factors: Float[np.ndarray, " B"]
    scores: dict[str, Float[np.ndarray, " B"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pulled:
    """The cotangents of one section.

    Attributes:
        x: That of its chunk.
        inner: Those of the end points on the levels below, see ``pull_back.pull_back``; empty: none.
    """

    x: Cotangent
    inner: tuple[Float[Array, "B T _ _ C"], ...] = ()


class Extras:
    """The regularisers and the reward of a distillation.

    Args:
        settings: Its settings.
        vae: The VAE, if anything needs it.
        channels: Channels of the generator's samples.

    Raises:
        ValueError: The VAE has other latents than the generator.
    """

    def __init__(self, settings: DistillSettings, vae: Network[WanVae] | None, channels: int) -> None:
        if vae is not None and vae.config.z_dim != channels:
            raise ValueError(
                f"the VAE of method.vae has latents of {vae.config.z_dim} channels, and the generator's have {channels}"
            )
        self._chosen, self._reward, self._vae = settings.regularisers, settings.reward, vae
        self._chunk_frames = settings.context.layout.chunk_frames

    @property
    def read_ends(self) -> bool:
        """Whether the end points of all levels are needed."""
        return self._chosen.consistency > 0

    def judged(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T2 H W C"]:
        """What the scores see of a sample: x' of equation (1)."""
        which = self._chosen.reencode
        if which == "none":
            return x
        assert self._vae is not None, "settings load one"
        with on_mesh_of(self._vae.params):
            return _reencode(self._vae, x, which, self._chunk_frames)

    def verdict(self, x: Float[Array, "B T H W C"], text: PromptBatch) -> Verdict | None:
        """The reward's; ``None`` without a reward.

        Raises:
            ValueError: The batch has no captions, or the reward does not give one score for each sample.
        """
        if self._reward is None:
            return None
        if text.captions is None:
            raise ValueError("a reward reads captions, and the batches have none: set data.captions")
        captions = decode_captions(np.asarray(readable(text.captions)))
        scores = self._reward(self._shown(x), captions)
        for name, values in scores.items():
            if np.shape(values) != (len(captions),):
                raise ValueError(
                    f"method.reward: score {name!r} has shape {np.shape(values)}, need one number for each of "
                    f"{len(captions)} samples"
                )
        factors = np.asarray(reward_weights(scores, self._chosen.rewards))
        weighted = {name: np.asarray(scores[name], np.float32) for name, _ in self._chosen.rewards}
        return Verdict(factors=factors, scores=weighted)

    def _shown(self, x: Float[Array, "B T H W C"]) -> np.ndarray:
        """What the reward reads of a sample, in host memory."""
        assert self._reward is not None, "asked for by the reward"
        if self._reward.reads == "latents":
            return np.asarray(readable(x))
        assert self._vae is not None, "settings load one"
        with on_mesh_of(self._vae.params):
            decoded = [decode_chunk(self._vae, chunk) for chunk in split_chunks(x, self._chunk_frames)]
        return np.concatenate([np.asarray(readable(chunk)) for chunk in decoded], axis=1)

    def weigh(self, verdict: Verdict | None, cotangent: Cotangent, metrics: Metrics) -> tuple[Cotangent, Metrics]:
        """A cotangent and its metrics times the reward's factors."""
        if verdict is None:
            return cotangent, metrics
        return _weighed(cotangent, metrics, verdict.factors, verdict.scores)

    def add(
        self, cotangent: Cotangent, metrics: Metrics, sections: Sequence[Section], scored: int, batch: LatentBatch
    ) -> tuple[list[Pulled], Metrics]:
        """Equation (1) from its first two terms, for each of the scored sections.

        Args:
            cotangent: Gradient of the loss in ``judged``.
            metrics: Its metrics.
            sections: The rollout.
            scored: How many sections at its end are scored.
            batch: The window, whose past is that of the first section if there is only one.
        """
        chosen, frames, last = self._chosen, self._chunk_frames, sections[-scored:]
        x = joined(last)
        if cotangent.shape != x.shape:
            cotangent = _placed(cotangent, x.shape[1], chosen.reencode == "first")
        terms: dict[str, Array] = {}
        of_clips = dataclasses.replace(chosen, consistency=0.0)
        if of_clips.have_loss:
            past = self._past(sections, scored, batch) if chosen.smoothness > 0 else None
            vae = self._vae if chosen.smoothness > 0 else None
            more, terms = self._clip_terms(of_clips, vae, x, past)
            cotangent = cotangent + more
        pulled = [Pulled(x=part) for part in split_chunks(cotangent, frames)] if scored > 1 else [Pulled(x=cotangent)]
        if chosen.consistency > 0:
            share = Regularisers(consistency=chosen.consistency / scored)
            for number, section in enumerate(last):
                (*inner, of_x), found = _of_levels(share, section.ends)
                pulled[number] = Pulled(x=pulled[number].x + of_x, inner=tuple(inner))
                found = found | {"consistency": found["consistency"] / scored}
                terms = terms | {name: terms[name] + found[name] if name in terms else found[name] for name in found}
        if terms:
            total = {"loss": metrics["loss"] + terms["regularisers"]}
            metrics = {"dmd_loss": metrics["loss"]} | metrics | terms | total
        return pulled, metrics

    def _clip_terms(
        self,
        chosen: Regularisers,
        vae: Network[WanVae] | None,
        x: Float[Array, "B T H W C"],
        past: Float[Array, "B T2 H W C"] | None,
    ) -> tuple[Cotangent, Metrics]:
        if vae is None:
            return _of_clips(chosen, self._chunk_frames, vae, x, past)
        with on_mesh_of(vae.params):
            return _of_clips(chosen, self._chunk_frames, vae, x, past)

    def _past(self, sections: Sequence[Section], scored: int, batch: LatentBatch) -> Float[Array, "B T H W C"]:
        """The chunk before the scored ones, undamaged; zeros for a sample whose generator did not see its end."""
        first = sections[-scored]
        if len(sections) > scored:
            before = sections[-scored - 1].x
        else:
            before = jnp.asarray(batch.history)[:, -self._chunk_frames :].astype(jnp.float32)
        return _where_seen(before, first.history.frames[:, -1:])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _reencode(
    vae: Network[WanVae], x: Float[Array, "B T H W C"], which: str, chunk_frames: int
) -> Float[Array, "B T2 H W C"]:
    return reencode(vae, x, "first" if which == "first" else "last", chunk_frames)


@jax.jit
def _weighed(
    cotangent: Cotangent,
    metrics: Metrics,
    factors: Float[AnyArray, " B"],
    scores: dict[str, Float[AnyArray, " B"]],
) -> tuple[Cotangent, Metrics]:
    """Losses are split among samples like the squared gradient: exactly, for the quadratic loss of scores."""
    factors = jnp.asarray(factors)
    squares = jnp.square(cotangent.astype(jnp.float32)).sum((1, 2, 3, 4))
    total = squares.sum()
    mean = jnp.where(total > 0, weigh(squares, factors).sum() / total, factors.mean())
    losses = {name: mean * metrics[name] for name in _WEIGHED if name in metrics}
    means = {f"reward/{name}": jnp.mean(values) for name, values in scores.items()}
    return weigh(cotangent, factors), metrics | losses | means | {"reward/factor": factors.mean()}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _placed(cotangent: Cotangent, frames: int, at_start: bool) -> Float[Array, "B T2 H W C"]:
    """The cotangent of a sample of which one chunk is trained."""
    rest = frames - cotangent.shape[1]
    return jnp.pad(cotangent, ((0, 0), (0, rest) if at_start else (rest, 0), (0, 0), (0, 0), (0, 0)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_clips(
    chosen: Regularisers,
    chunk_frames: int,
    vae: Network[WanVae] | None,
    x: Float[Array, "B T H W C"],
    past: Float[Array, "B T2 H W C"] | None,
) -> tuple[Cotangent, Metrics]:
    """The gradient of the terms that read whole samples."""
    end = LevelEnd(last=x)
    (cotangent,), metrics = regulariser_cotangents(chosen, [end], vae=vae, previous=past, chunk_frames=chunk_frames)
    return cotangent, metrics


@functools.partial(jax.jit, static_argnums=0)
def _of_levels(
    chosen: Regularisers, ends: tuple[LevelEnd, ...]
) -> tuple[tuple[Float[Array, "B T _ _ C"], ...], Metrics]:
    """The gradient of consistency."""
    return regulariser_cotangents(chosen, ends)


@jax.jit
def _where_seen(before: Float[Array, "B T H W C"], last_seen: Float[Array, "B 1 H W C"]) -> Float[Array, "B T H W C"]:
    return jnp.where(jnp.any(last_seen != 0, axis=(1, 2, 3, 4), keepdims=True), before, 0.0)
