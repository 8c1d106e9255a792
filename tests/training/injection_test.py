"""Forms of context: which frames are kept, how often, and that sampling meets the same tiers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_cases import LAYOUT, draw, keys, latent_batch

from helios_jax.config import HistoryConfig
from helios_jax.context import History
from helios_jax.training.batch import LatentBatch, PromptBatch
from helios_jax.training.injection import ContextDrop, DropDraws, Injection, InjectionDraws, drop_context
from helios_jax.training.methods.base import Base
from helios_jax.training.methods.pyramid import Pyramid
from helios_jax.training.networks import Networks
from helios_jax.training.windows import cut_window

PUBLISHED = HistoryConfig()
PLAIN = Injection(drop=ContextDrop(t2v=0, i2v=0, v2v=0), corruption=None, saturation=None)
COUNT = 100_000


def ones(layout: HistoryConfig, batch: int) -> History:
    return History(frames=jnp.ones((batch, layout.buffer_frames, 1, 1, 1)), anchor=jnp.ones((batch, 1, 1, 1, 1)))


def kept_frames(history: History) -> list[tuple[int, int]]:
    """(anchor, frames) kept of each sample, after a check that frames are dropped from the oldest on."""
    frames = np.asarray(history.frames)[:, :, 0, 0, 0]
    assert (np.diff(frames, axis=1) >= 0).all()
    anchor = np.asarray(history.anchor)[:, 0, 0, 0, 0].astype(int)
    return list(zip(anchor.tolist(), frames.sum(1).astype(int).tolist(), strict=True))


def uniforms(*rows: tuple[float, float, float, float]) -> DropDraws:
    t2v, i2v, v2v, chunks = jnp.array(rows).T
    return DropDraws(t2v=t2v, i2v=i2v, v2v=v2v, chunks=chunks)


def test_nested_tests_on_the_published_history():
    draws = uniforms(
        (0.39, 0.0, 0.0, 0.0),
        (0.41, 0.09, 0.0, 0.0),
        (0.41, 0.11, 0.39, 0.0),
        (0.41, 0.11, 0.39, 0.34),
        (0.41, 0.11, 0.39, 0.99),
        (0.41, 0.11, 0.41, 0.5),
    )
    dropped = drop_context(ones(PUBLISHED, 6), draws, ContextDrop(), PUBLISHED)
    assert kept_frames(dropped) == [(0, 0), (1, 1), (1, 18), (1, 9), (1, 0), (1, 19)]


def test_numbers_follow_from_the_layout():
    rows = [(0.9, 0.05, 0.9, 0.0)] + [(0.9, 0.9, 0.1, n) for n in (0.1, 0.5, 0.9)]
    dropped = drop_context(ones(LAYOUT, 4), uniforms(*rows), ContextDrop(), LAYOUT)
    assert kept_frames(dropped) == [(1, 1), (1, 6), (1, 3), (1, 0)]
    free = HistoryConfig(keep_first_frame=False)
    dropped = drop_context(ones(free, 4), uniforms(*rows), ContextDrop(), free)
    assert [kept for _, kept in kept_frames(dropped)] == [2, 18, 9, 0]


@pytest.mark.parametrize(
    ("drop", "probabilities"),
    [
        (ContextDrop(), {(0, 0): 0.4, (1, 1): 0.06, (1, 18): 0.072, (1, 9): 0.072, (1, 0): 0.072, (1, 19): 0.324}),
        (ContextDrop(i2v=0), {(0, 0): 0.4, (1, 18): 0.08, (1, 9): 0.08, (1, 0): 0.08, (1, 19): 0.36}),
        (ContextDrop(i2v=0, v2v=0.5), {(0, 0): 0.4, (1, 18): 0.1, (1, 9): 0.1, (1, 0): 0.1, (1, 19): 0.3}),
        (ContextDrop(t2v=0, i2v=0, v2v=0), {(1, 19): 1.0}),
        (ContextDrop(t2v=1), {(0, 0): 1.0}),
    ],
)
def test_frequencies(drop, probabilities):
    draws = jax.jit(jax.vmap(drop.draw))(keys(COUNT))
    forms, counts = np.unique(
        kept_frames(drop_context(ones(PUBLISHED, COUNT), draws, drop, PUBLISHED)), axis=0, return_counts=True
    )
    found = {tuple(form): count / COUNT for form, count in zip(forms.tolist(), counts.tolist(), strict=True)}
    assert found.keys() == probabilities.keys()
    for form, probability in probabilities.items():
        assert abs(found[form] - probability) <= 3 * np.sqrt(probability * (1 - probability) / COUNT)


def test_the_published_training_never_makes_the_image_form():
    image = uniforms((0.41, 0.0, 0.39, 0.0))  # which passes the test for every ratio above 0
    assert kept_frames(drop_context(ones(PUBLISHED, 1), image, ContextDrop.published(), PUBLISHED)) == [(1, 18)]


def sampling_batch(history: History) -> LatentBatch:
    target = jnp.zeros((history.frames.shape[0], 9, *history.frames.shape[2:]))
    return LatentBatch(target=target, history=history.frames, anchor=history.anchor, text=PromptBatch())


def test_forms_are_the_contexts_of_sampling():
    """A window of a video, dropped to a form, gives the tiers that the sampler makes for that task."""
    chunks = jax.random.normal(jax.random.key(0), (3, 1, 9, 2, 3, 4))
    start = History.empty(PUBLISHED, 1, 2, 3, 4)
    video = start.with_anchor(chunks[0][:, :1])
    for chunk in chunks:
        video = video.push(chunk)
    continued = start.with_anchor(chunks[0][:, :1]).push(chunks[2])
    image = start.with_anchor(chunks[0][:, :1]).replace_tail(chunks[2][:, -1:])
    always = ContextDrop(t2v=0, i2v=0, v2v=1)
    for expected, drop, n in (
        (video, ContextDrop(t2v=0, i2v=0, v2v=0), 0.0),
        (continued, always, 0.5),
        (image, ContextDrop(t2v=0, i2v=1), 0.0),
        (start, ContextDrop(t2v=1), 0.0),
    ):
        injection = Injection(drop=drop, corruption=None, saturation=None)
        draws = jax.vmap(lambda key, injection=injection: injection.draw(key, (19, 2, 3, 4)))(keys(1))
        draws = dataclasses.replace(draws, drop=dataclasses.replace(draws.drop, chunks=jnp.array([n])))
        made = injection.history(sampling_batch(video), draws).tiers(PUBLISHED)
        for tier in ("long", "mid", "short"):
            np.testing.assert_array_equal(getattr(made, tier), getattr(expected.tiers(PUBLISHED), tier))


def test_without_an_anchor_training_sees_what_sampling_sees():
    """The context of chunk 3: 20 frames before it, the first frame of the video among them only while it is recent."""
    free = HistoryConfig(keep_first_frame=False)
    clip = np.arange(4 * 9, dtype=np.float32).reshape(4, 9, 1, 1, 1) + 1
    target, history, anchor = cut_window(clip, clip[0, 0], 3, free.buffer_frames)
    batch = LatentBatch(
        **{name: jnp.asarray(part[None]) for name, part in (("target", target), ("history", history))},
        anchor=jnp.asarray(anchor[None]),
        text=PromptBatch(),
    )
    injection = Injection(layout=free, drop=ContextDrop(t2v=0, i2v=0, v2v=0), corruption=None, saturation=None)
    trained = injection.history(batch, jax.vmap(lambda key: injection.draw(key, (20, 1, 1, 1)))(keys(1))).tiers(free)
    sampled = History.empty(free, 1, 1, 1, 1).with_anchor(jnp.full((1, 1, 1, 1, 1), 99.0))
    for chunk in clip[:3]:
        sampled = sampled.push(jnp.asarray(chunk[None]))
    for tier, frames in (("long", range(8, 24)), ("mid", (24, 25)), ("short", (26, 27))):
        assert getattr(trained, tier).ravel().tolist() == list(frames)
        np.testing.assert_array_equal(getattr(trained, tier), getattr(sampled.tiers(free), tier))


def test_draws_of_a_sample_do_not_depend_on_the_batch():
    injection = Injection(layout=LAYOUT)
    draw = jax.jit(jax.vmap(lambda key: injection.draw(key, (7, 2, 2, 3))))
    together, alone = draw(keys(3)), draw(keys(3)[1:2])
    for of_three, of_one in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(of_three[1:2], of_one)
    assert not np.array_equal(together.corruption.noise[0], together.corruption.noise[1])


def test_batches_that_do_not_fit_the_layout_are_refused():
    with pytest.raises(ValueError, match=r"7 frames of history and the layout reads 19 \(sizes \(16, 2, 1\)\)"):
        PLAIN.history(latent_batch(1), PLAIN.draw(keys(1)[0], (7, 8, 8, 4)))


def test_rounded_latents_are_mixed_in_fp32():
    batch = sampling_batch(jax.tree.map(lambda x: (x / 3).astype("bfloat16"), ones(PUBLISHED, 1)))
    draws = InjectionDraws(drop=uniforms((0.9, 0.9, 0.9, 0.9)), corruption=None, saturation=None)
    history = PLAIN.history(batch, draws)
    assert (history.frames.dtype, history.anchor.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_array_equal(history.frames, batch.history.astype("float32"))


def decisions(draws: InjectionDraws) -> dict[str, np.ndarray]:
    """What a batch decides once with ``decide="batch"``: all draws but noise and its level."""
    corruption = {name: getattr(draws.corruption, name) for name in ("clean", "mode", "scale")}
    groups = {"drop": vars(draws.drop), "corruption": corruption, "saturation": vars(draws.saturation)}
    return {f"{group}/{name}": np.asarray(u) for group, values in groups.items() for name, u in values.items()}


def test_a_batch_can_decide_once_as_published():
    """The first sample decides; noise and its levels stay those of each sample."""
    batch, own = latent_batch(3), draw(Base(context=Injection(layout=LAYOUT)), latent_batch(3), keys(3)).context
    shared = draw(Base(context=Injection(layout=LAYOUT, decide="batch")), batch, keys(3)).context
    assert len(decisions(own)) == 10
    for name, u in decisions(own).items():
        assert len(np.unique(u, axis=0)) == 3, name
        np.testing.assert_array_equal(decisions(shared)[name], np.broadcast_to(u[:1], u.shape), err_msg=name)
    for name in ("sigma", "noise"):
        np.testing.assert_array_equal(getattr(shared.corruption, name), getattr(own.corruption, name))


@pytest.mark.slow
@pytest.mark.parametrize("method", [Base, Pyramid])
def test_all_microbatches_share_the_decisions_of_the_step(method):
    method, every = method(context=Injection(layout=LAYOUT, decide="batch")), keys(4)
    whole = method.draw(Networks(), latent_batch(4), every).context
    for part in (slice(0, None, 2), slice(1, None, 2)):
        piece = method.draw(Networks(), latent_batch(2), every[part], every[0]).context
        for found, expected in zip(jax.tree.leaves(piece), jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(found, expected[part])


def test_published_settings():
    """Drops of 0.4 / 0 / 0.4 and noise alone; decisions per sample unless asked for."""
    published = Injection.published()
    assert (published.drop.t2v, published.drop.i2v, published.drop.v2v) == (0.4, 0.0, 0.4)
    assert (published.corruption.clean, published.corruption.blur, published.corruption.max_sigma) == (0.1, 0.0, 1 / 3)
    assert (published.saturation, published.decide) == (None, "sample")
    assert Injection.published("batch") == dataclasses.replace(published, decide="batch")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ContextDrop, {"t2v": 1.5}, r"t2v=1\.5 must be a finite number from 0 to 1"),
        (ContextDrop, {"i2v": -1}, r"i2v=-1 must be"),
        (ContextDrop, {"v2v": float("nan")}, r"v2v=nan must be"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)
