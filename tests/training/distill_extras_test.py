"""Stage 3 with regularisers and a reward: gradients against one differentiable loss, and what stays as it was."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_distillation import (
    HEADS,
    PAIR,
    SIZE,
    IdentityVae,
    NoData,
    oracle,
    perturb,
    recorded_step,
    relative_error,
    running,
    settings_of,
)

from helios_jax.context import History
from helios_jax.distillation.gan import Gan
from helios_jax.distillation.moments import LatentMoments, moments_loss
from helios_jax.distillation.regularisers import LevelEnd, Regularisers
from helios_jax.models.network import Network
from helios_jax.training.batch import LatentPair
from helios_jax.training.distill_extras import Extras
from helios_jax.training.distill_sections import Section
from helios_jax.training.distill_settings import OwnContexts
from helios_jax.training.text_formats import encode_captions

CAPTIONS = ["a fox", "zwei Bären"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """A reward that gives every sample the same score, and checks what it is given."""

    score: float = 0.5
    names: tuple[str, ...] = ("taste",)
    reads: str = "latents"

    def __call__(self, samples: Any, captions: Any) -> Any:
        assert list(captions) == CAPTIONS
        dtype, channels = (np.uint8, 3) if self.reads == "frames" else (np.float32, 4)
        assert (samples.dtype, samples.shape) == (dtype, (2, 9, SIZE, SIZE, channels))
        return {"taste": np.full(2, self.score, np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong(Constant):
    """A reward with one score for the whole batch."""

    def __call__(self, samples: Any, captions: Any) -> Any:
        return {"taste": np.float32(0)}


class Plain:
    """A reward that is not a dataclass, and would not be in the settings that a run saves."""

    names, reads = ("taste",), "latents"

    def __call__(self, samples: Any, captions: Any) -> Any:
        raise NotImplementedError


def captioned() -> LatentPair:
    text = dataclasses.replace(PAIR.generator.text, captions=jnp.asarray(encode_captions(CAPTIONS, 20)))
    return dataclasses.replace(PAIR, generator=dataclasses.replace(PAIR.generator, text=text))


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def extras(reward: Any = None, **chosen: Any) -> Extras:
    settings = settings_of(regularisers=Regularisers(**chosen), reward=reward)
    return Extras(settings, Network.of(IdentityVae()), 4)


def sections(*chunks: jax.Array, ends: tuple[LevelEnd, ...] = ()) -> list[Section]:
    """Sections whose context is empty for the second sample."""
    history: Any = History(
        frames=jnp.stack([jnp.ones((19, 2, 2, 4)), jnp.zeros((19, 2, 2, 4))]), anchor=jnp.zeros((2, 1, 2, 2, 4))
    )
    return [Section(history=history, routes=(), visits=(), x=x, ends=ends) for x in chunks]


def test_nothing_changes_by_default():
    """The same arrays come back, so no program runs."""
    x, metrics, none = normal(0, 2, 9, 2, 2, 4), {"loss": jnp.float32(2)}, extras()
    assert none.judged(x) is x
    assert none.verdict(x, PAIR.generator.text) is None
    cotangent, same = none.weigh(None, x, metrics)
    (pulled,), after = none.add(cotangent, same, sections(x), 1, PAIR.generator)
    assert pulled.x is x
    assert pulled.inner == ()
    assert after is metrics
    assert not none.read_ends


def test_samples_count_as_their_rewards_say():
    """The loss of scores is half the mean of squares, here of g; each sample's is multiplied by its factor."""
    g, factors = normal(1, 2, 9, 2, 2, 4), np.array([0.5, 3.0], np.float32)
    judge = extras(Constant(), rewards=(("taste", 2.0),))
    verdict = judge.verdict(normal(2, 2, 9, SIZE, SIZE, 4), captioned().generator.text)
    assert verdict is not None
    np.testing.assert_allclose(verdict.factors, np.exp([1, 1]), rtol=1e-6)
    verdict = dataclasses.replace(verdict, factors=factors)
    loss = 0.5 * jnp.square(g).mean()
    cotangent, metrics = judge.weigh(verdict, g / g.size, {"loss": loss, "timestep": jnp.float32(7)})
    np.testing.assert_allclose(cotangent, g / g.size * factors[:, None, None, None, None], rtol=1e-6)
    want = (0.5 * np.square(g).mean((1, 2, 3, 4)) * factors).mean()
    assert float(metrics["loss"]) == pytest.approx(want, rel=1e-5)
    assert float(metrics["timestep"]) == 7
    assert float(metrics["reward/taste"]) == 0.5


def test_rewards_of_frames_see_decoded_pixels_and_bad_rewards_are_named():
    x, text = normal(2, 2, 9, SIZE, SIZE, 4), captioned().generator.text
    assert extras(Constant(reads="frames"), rewards=(("taste", 2.0),)).verdict(x, text) is not None
    with pytest.raises(ValueError, match=r"score 'taste' has shape \(\), need one number for each of 2 samples"):
        extras(Wrong(), rewards=(("taste", 2.0),)).verdict(x, text)
    with pytest.raises(ValueError, match=r"set data\.captions"):
        extras(Constant(), rewards=(("taste", 2.0),)).verdict(x, PAIR.generator.text)


def test_one_chunk_is_judged_when_it_is_encoded_again():
    x, slope = [normal(seed, 2, 9, 2, 2, 4) for seed in (3, 4)], normal(5, 2, 9, 2, 2, 4)
    both = jnp.concatenate(x, axis=1)
    for number, which in enumerate(("first", "last")):
        chosen = extras(reencode=which)
        np.testing.assert_allclose(chosen.judged(both), x[number], atol=1e-6)
        pulled, _ = chosen.add(slope, {"loss": jnp.zeros(())}, sections(*x), 2, PAIR.generator)
        np.testing.assert_array_equal(pulled[number].x, slope)
        assert not pulled[1 - number].x.any()


def test_smoothness_pulls_to_the_past_that_the_generator_saw():
    batch = dataclasses.replace(
        PAIR.generator,
        target=normal(15, 2, 9, 2, 2, 4),
        history=normal(6, 2, 19, 2, 2, 4),
        anchor=normal(16, 2, 1, 2, 2, 4),
    )
    x, cotangent = normal(7, 2, 9, 2, 2, 4), normal(8, 2, 9, 2, 2, 4)
    own = normal(9, 2, 9, 2, 2, 4)
    for rollout, past in ((sections(x), batch.history), (sections(own, x), own)):
        (pulled,), metrics = extras(smoothness=0.5).add(cotangent, {"loss": jnp.float32(1)}, rollout, 1, batch)
        difference = np.asarray(x[0, 0] - past[0, -1])
        want = np.zeros(x.shape, np.float32)
        want[0, 0] = 0.5 * difference / difference.size / 2  # half: the mean over two samples
        np.testing.assert_allclose(pulled.x - cotangent, want, atol=1e-6)
        smoothness = 0.5 * np.square(difference).mean() / 2
        assert float(metrics["smoothness"]) == pytest.approx(smoothness, rel=1e-4)
        assert float(metrics["loss"]) == pytest.approx(1 + 0.5 * smoothness, rel=1e-5)
        assert float(metrics["dmd_loss"]) == 1


def test_consistency_reaches_the_end_points_of_lower_levels():
    x, cotangent = normal(10, 2, 9, 2, 2, 4), normal(11, 2, 9, 2, 2, 4)
    low = LevelEnd(last=normal(12, 2, 9, 1, 1, 4), earlier=normal(13, 1, 2, 9, 1, 1, 4))
    top = LevelEnd(last=x, earlier=normal(14, 2, 2, 9, 2, 2, 4))
    rollout = sections(x, x, ends=(low, top))
    chosen = extras(consistency=0.25)
    assert chosen.read_ends
    for scored in (1, 2):
        whole = jnp.concatenate([cotangent] * scored, axis=1)
        pulled, metrics = chosen.add(whole, {"loss": jnp.zeros(())}, rollout, scored, PAIR.generator)
        for one in pulled:
            (inner,) = one.inner
            want = 0.25 / scored * (low.last - low.earlier[0]) / low.last.size
            np.testing.assert_allclose(inner, want, rtol=1e-4, atol=1e-8)
            want = cotangent + 0.25 / scored * (x - top.earlier.mean(0)) / x.size
            np.testing.assert_allclose(one.x, want, rtol=1e-4, atol=1e-6)
        errors = [0.5 * np.square(end.last - end.earlier).mean() for end in (low, top)]
        assert float(metrics["consistency"]) == pytest.approx(sum(errors), rel=1e-4)
        assert float(metrics["loss"]) == pytest.approx(0.25 * sum(errors), rel=1e-4)


def test_settings_are_checked():
    weights = Regularisers(rewards=(("taste", 2.0),))
    for changes, message in (
        ({"reward": Constant()}, "are given together"),
        ({"regularisers": weights}, "are given together"),
        ({"reward": Plain(), "regularisers": weights}, "must be a dataclass with names"),
        ({"reward": Constant(names=("beauty",)), "regularisers": weights}, "no score 'taste'; the reward gives beauty"),
        ({"regularisers": Regularisers(smoothness=1.0), "score_levels": "random"}, "read whole samples, 'last'"),
        (
            {"regularisers": Regularisers(consistency=1.0), "steps": (1, 1, 1), "amplify_first_chunk": False},
            "has one on each",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            settings_of(**changes)


def test_what_is_missing_is_named_before_anything_is_loaded(monkeypatch):
    weights = Regularisers(rewards=(("taste", 2.0),))
    monkeypatch.setattr(NoData, "captions", 0, raising=False)
    with pytest.raises(ValueError, match=r"data\.captions=0: a reward reads captions"):
        running(reward=Constant(), regularisers=weights)
    with pytest.raises(ValueError, match="latents of 4 channels, and the generator's have 16"):
        Extras(settings_of(), Network.of(IdentityVae()), 16)


@pytest.mark.slow
def test_the_gradient_with_moments_is_that_of_the_summed_loss():
    moments = LatentMoments(weight=3.0, first_frame=LatentMoments().all_frames)
    run = running(amplify_first_chunk=False, regularisers=Regularisers(moments=moments))
    weights = perturb(run)
    want_loss, x, want = oracle(run, weights, lambda x: 3.0 * moments_loss(x, moments).mean())
    gradient, loss, metrics = recorded_step(run)
    assert loss == pytest.approx(float(want_loss), rel=1e-4)
    assert relative_error(gradient, want) < 1e-4
    assert float(metrics["generator/moments"]) == pytest.approx(float(moments_loss(x, moments).mean()), rel=1e-4)
    _, _, without = oracle(run_without := running(amplify_first_chunk=False), perturb(run_without))
    assert relative_error(gradient, without) > 0.01


@pytest.mark.slow
def test_a_constant_reward_scales_the_gradient_and_reencoding_by_the_identity_does_nothing():
    gan = Gan(start_step=0, heads=HEADS, crop=1.0)
    constant = {"reward": Constant(), "regularisers": Regularisers(rewards=(("taste", 2.0),))}
    again = {"regularisers": Regularisers(reencode="last")}
    plain, rewarded, encoded = (running(gan=gan, **changes) for changes in ({}, constant, again))
    for run in (plain, rewarded, encoded):
        perturb(run)
    gradient, loss, _ = recorded_step(plain)
    scaled, scaled_loss, metrics = recorded_step(rewarded, captioned())
    factor = float(np.exp(2 * 0.5))
    assert float(metrics["generator/reward/factor"]) == pytest.approx(factor, rel=1e-6)
    assert relative_error(scaled, {path: factor * array for path, array in gradient.items()}) < 1e-5
    assert scaled_loss == pytest.approx(factor * loss, rel=1e-5)
    same, same_loss, _ = recorded_step(encoded)
    assert relative_error(same, gradient) < 1e-5
    assert same_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("own", [None, OwnContexts(sections=(2, 3), scored=2)])
def test_everything_together_updates_both_players(own):
    chosen = Regularisers(reencode="last", smoothness=0.01, consistency=0.25, moments=LatentMoments.of_chunks())
    run = running(ratio=1, own=own, regularisers=chosen, memory="scheduled")
    for number in (1, 2):
        metrics = {name: float(value) for name, value in run.step(PAIR, number).items()}
        assert metrics["generator/skipped"] == metrics["critic/skipped"] == 0
        terms = {"smoothness": 0.01, "consistency": 0.25, "moments": 1.0}
        total = sum(weight * metrics[f"generator/{name}"] for name, weight in terms.items())
        assert metrics["generator/regularisers"] == pytest.approx(total, rel=1e-4)
        assert metrics["generator/loss"] == pytest.approx(metrics["generator/dmd_loss"] + total, rel=1e-4)
