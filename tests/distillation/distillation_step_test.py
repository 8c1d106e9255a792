"""One step of stage 3 against PyTorch (tests/parity/record_distillation_step.py).

Same weights and draws give the same rollout, the same distribution matching, the same loss of the critic and the same
gradient of every factor of the adapters. A gradient of the discriminator that PyTorch computed is passed back to the
adapters as well.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recorded_step as step

from helios_jax.diffusion.flow import interpolate, predict_clean
from helios_jax.distillation.dmd import critic_loss, dmd_gradient, dmd_loss, guide


@jax.jit
def end_point(trainable, x, noise, timestep, text, history):
    """Where a score sees the end point of a sample that it is given with noise."""
    sigma = step.LEVELS.sigma(timestep)[:, None, None, None, None]
    noised = interpolate(noise, x, sigma)
    return predict_clean(noised, step.velocity("critic", trainable, noised, timestep, text, history), sigma)


@jax.jit
@jax.value_and_grad
def flow_loss(trainable, x, noise, timestep, history):
    """The critic's loss."""
    sigma = step.LEVELS.sigma(timestep)[:, None, None, None, None]
    noised = interpolate(noise, x, sigma)
    return critic_loss(step.velocity("critic", trainable, noised, timestep, step.text("text"), history), noise, x)


@pytest.mark.slow
@pytest.mark.parametrize("case", step.EXITS)
def test_generator_update_matches_pytorch(case):
    recorded = step.recorded(case)
    x, pull_back = step.generate(case, "a")
    assert step.error(x, recorded["x"]) <= step.TOLERANCE

    plain, timestep = step.history("a", case, saturated=False), jnp.array(step.TIMESTEPS["a"])
    adapters = step.network("critic")[1]
    none = jax.tree.map(jnp.zeros_like, adapters)
    noise = step.video("scores/noise")
    fake = end_point(adapters, x, noise, timestep, step.text("text"), plain)
    cond, uncond = (end_point(none, x, noise, timestep, step.text(name), plain) for name in ("text", "negative"))
    gradient = dmd_gradient(x, fake, guide(cond, uncond))
    for name, array in {"fake": fake, "cond": cond, "uncond": uncond, "gradient": gradient}.items():
        expected = recorded[f"dmd/{name}"]
        value = array if expected.ndim else np.linalg.norm(array)
        assert step.error(value, expected) <= step.TOLERANCE, name
    loss, cotangent = jax.value_and_grad(dmd_loss)(x, gradient)
    assert float(loss) == pytest.approx(float(recorded["dmd/loss"]), rel=step.TOLERANCE)
    step.assert_same_gradients("generator", *pull_back(cotangent), recorded, "generator/dmd")

    # The discriminator's gradient reaches the sample through (1 - sigma) x + sigma eps at the places of the crop.
    sigma = step.LEVELS.sigma(timestep)[:, None, None, None, None]
    (placed,) = jax.vjp(lambda x: step.crop(x, "a"), x)[1](jnp.asarray(recorded["gan/input_gradient"]))
    step.assert_same_gradients("generator", *pull_back(0.05 * (1 - sigma) * placed), recorded, "generator/gan")


@pytest.mark.slow
@pytest.mark.parametrize("case", step.EXITS)
def test_critic_update_matches_pytorch(case):
    recorded = step.recorded(case)
    x, _ = step.generate(case, "b")
    assert float(jnp.linalg.norm(x)) == pytest.approx(float(recorded["critic/x"]), rel=step.TOLERANCE)
    plain, timestep = step.history("b", case, saturated=False), jnp.array(step.TIMESTEPS["b"])
    loss, gradients = flow_loss(step.network("critic")[1], x, step.video("critic/noise"), timestep, plain)
    assert float(loss) == pytest.approx(float(recorded["critic/flow_loss"]), rel=step.TOLERANCE)
    step.assert_same_gradients("critic", gradients, recorded, "critic/flow")
