"""The adversarial part of one step of stage 3 against PyTorch (tests/parity/record_distillation_step.py).

Same weights and draws give the same logits, losses and penalty, the same gradient of every parameter of the heads and
of every factor of the critic's adapters, and the same adversarial gradient of the generator's adapters.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded_heads as heads
import recorded_step as step

from helios_jax.context import History
from helios_jax.distillation.crops import uncrop
from helios_jax.distillation.gan import DiscriminatorDraws, Gan, GeneratorDraws, gan_cotangent, gan_loss
from helios_jax.distillation.judge import judge_clips
from helios_jax.models.discriminator import Discriminator
from helios_jax.training.params import Params, unflatten

SETTINGS = Gan(heads=heads.CONFIG)
PATCH = (1, 2, 2)

Parameters = dict[str, Params]
"""Of the critic: "adapters" and "heads"."""


def parameters() -> Parameters:
    return {"adapters": step.network("critic")[1], "heads": heads.network()[1]}


def judge(params: Parameters, x: jax.Array, timestep: jax.Array, history: History) -> jax.Array:
    """The logits of clips."""
    graph, _, frozen = step.network("critic")
    model = unflatten(graph, {**frozen, **params["adapters"]})
    return judge_clips(
        model,
        heads.discriminator(params["heads"]),
        x,
        timestep,
        text=model.condition_embedder.text(step.text("text")),
        context=model.context(history.tiers(step.LAYOUT)),
        layout=step.LAYOUT,
        full=step.SIZE,
        execution=step.EXECUTION,
    )


compiled_judge = jax.jit(judge)


def noise_level(window: str) -> tuple[jax.Array, jax.Array]:
    """Timesteps and noise levels of the samples."""
    timestep = jnp.array(step.TIMESTEPS[window])
    return timestep, step.LEVELS.sigma(timestep)


@jax.jit
def cotangent_of(params, x, history):
    """The adversarial gradient in the generator's sample."""
    timestep, sigma = noise_level("a")
    return gan_cotangent(
        judge,
        params,
        x,
        timestep=timestep,
        sigma=sigma,
        condition=history,
        draws=GeneratorDraws(noise=step.video("gan/noise"), corner=heads.crop_corners("a")),
        settings=SETTINGS,
        patch=PATCH,
    )


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def discriminator_loss(params, fake, perturbation, history):
    """The weighted loss of the critic's adversarial part, with all clips of a sample cropped at one place."""
    timestep, sigma = noise_level("b")
    corner = heads.crop_corners("b")
    return gan_loss(
        judge,
        params,
        fake,
        step.video("b/target"),
        noise=step.video("critic/noise"),
        timestep=timestep,
        sigma=sigma,
        condition=history,
        draws=DiscriminatorDraws(
            corners=jnp.repeat(corner[:, None], 4, axis=1), real=uncrop(perturbation, corner, step.SIZE), fake=None
        ),
        settings=SETTINGS,
        patch=PATCH,
    )


def test_heads_have_the_recorded_names_and_shapes():
    """Our parameters in PyTorch's layout are the ones that PyTorch was given, none missing and none left over."""
    published = heads.published_parameters(heads.network()[1])
    assert published.keys() == step.under(step.recorded(step.FULL), "critic/heads").keys()
    for name, value in published.items():
        np.testing.assert_array_equal(value, step.head_parameter(name, value.shape), err_msg=name)
    assert isinstance(heads.discriminator(heads.network()[1]), Discriminator)


@pytest.mark.slow
@pytest.mark.parametrize("case", step.EXITS)
def test_adversarial_gradient_of_the_generator_matches_pytorch(case):
    recorded = step.recorded(case)
    x, pull_back = step.generate(case, "a")
    history, (timestep, sigma) = step.history("a", case, saturated=False), noise_level("a")
    level = sigma[:, None, None, None, None]
    seen = step.crop((1 - level) * x + level * step.video("gan/noise"), "a")
    assert step.error(compiled_judge(parameters(), seen, timestep, history), recorded["gan/logits"]) <= step.TOLERANCE

    cotangent, metrics = cotangent_of(parameters(), x, history)
    assert float(metrics["gan/generator_loss"]) == pytest.approx(float(recorded["gan/loss"]), rel=step.TOLERANCE)
    at_crop = step.crop(cotangent / (0.05 * (1 - level)), "a")
    assert step.error(at_crop, recorded["gan/input_gradient"]) <= step.TOLERANCE
    assert int((cotangent != 0).sum()) <= at_crop.size
    step.assert_same_gradients("generator", *pull_back(cotangent), recorded, "generator/gan")


@pytest.mark.slow
@pytest.mark.parametrize("case", step.EXITS)
def test_discriminator_matches_pytorch(case):
    recorded, history = step.recorded(case), step.history("b", case, saturated=False)
    fake, perturbation = step.sample(case, "b"), step.video("critic/perturbation", size=step.CROP)
    timestep, sigma = noise_level("b")
    level = sigma[:, None, None, None, None]
    noised = ((1 - level) * clean + level * step.video("critic/noise") for clean in (fake, step.video("b/target")))
    fakes, reals = (step.crop(clip, "b") for clip in noised)
    for clips, expected in zip((fakes, reals, reals + 0.1 * perturbation), recorded["critic/logits"], strict=True):
        assert step.error(compiled_judge(parameters(), clips, timestep, history), expected) <= step.TOLERANCE

    (total, metrics), gradients = discriminator_loss(parameters(), fake, perturbation, history)
    loss, penalty = (float(recorded[f"critic/{name}"]) for name in ("gan_loss", "penalty"))
    assert float(metrics["gan/discriminator_loss"]) == pytest.approx(loss, rel=step.TOLERANCE)
    assert float(metrics["gan/r1"]) == pytest.approx(penalty, rel=step.TOLERANCE)
    assert float(total) == pytest.approx(0.01 * loss + 100 * penalty, rel=step.TOLERANCE)
    step.assert_same_gradients("critic", gradients["adapters"], recorded, "critic/gan")

    actual, expected = heads.published_parameters(gradients["heads"]), step.under(recorded, "critic/heads")
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        value = actual[name] if array.ndim else np.linalg.norm(actual[name])
        if name.endswith("linear.bias"):
            # 0.01 (mean sigmoid(D(r)) - mean sigmoid(-D(f))) and little more: two halves that almost cancel.
            np.testing.assert_allclose(value, array, atol=step.TOLERANCE * 0.01 / 2)
        else:
            assert step.error(value, array) <= step.TOLERANCE, name
