"""Guidance against diffusers (recorded) and against its geometry."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helios_jax.config import PipelineConfig
from helios_jax.diffusion.guidance import CfgZeroStar, ClassifierFree, make_guidance

DATA = pathlib.Path(__file__).parents[1] / "parity" / "data" / "schedules"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("name", "guidance"), [("plain", ClassifierFree()), ("zero_star", CfgZeroStar())])
def test_guidance_equals_diffusers(name: str, guidance, dtype: str):
    """The results are bit-exact in bf16."""
    with np.load(DATA / "guidance.npz") as arrays:
        cond, uncond, expected = (arrays[f"{dtype}/{key}"] for key in ("cond", "uncond", name))
    guided = jax.jit(guidance)(jnp.asarray(cond, dtype), jnp.asarray(uncond, dtype), 5.0)
    assert guided.dtype == dtype
    tolerance = {} if dtype == "bfloat16" else {"rtol": 1e-5, "atol": 5e-6}
    np.testing.assert_allclose(np.asarray(guided, np.float32), expected, **{"rtol": 0, **tolerance})


def test_zero_star_projects_each_sample():
    """With c = k u + w, w orthogonal to u: v = k u + g w, where every sample has its own k."""
    u, w = jax.random.normal(jax.random.key(0), (2, 2, 3, 4, 4, 2))
    axes = (1, 2, 3, 4)
    w = w - (w * u).sum(axes, keepdims=True) / (u * u).sum(axes, keepdims=True) * u
    k = jnp.array([0.5, -2.0]).reshape(2, 1, 1, 1, 1)
    np.testing.assert_allclose(CfgZeroStar()(k * u + w, u, 3.0), k * u + 3 * w, atol=1e-5)


@pytest.mark.parametrize("guidance", [ClassifierFree(), CfgZeroStar()])
def test_scale_one_and_equal_prompts_change_nothing(guidance):
    c, u = jax.random.normal(jax.random.key(1), (2, 2, 3, 4, 4, 2))
    np.testing.assert_allclose(guidance(c, u, 1.0), c, atol=1e-6)
    np.testing.assert_allclose(guidance(c, c, 7.0), c, atol=1e-5)


def test_zero_init_is_two_steps_of_the_first_level():
    guidance = CfgZeroStar()
    assert [guidance.is_zero_init(0, step) for step in range(4)] == [True, True, False, False]
    assert not guidance.is_zero_init(1, 0)
    assert not CfgZeroStar(zero_steps=-1).is_zero_init(0, 0)
    assert not ClassifierFree().is_zero_init(0, 0)


@pytest.mark.parametrize("guidance", [ClassifierFree(), CfgZeroStar()])
def test_another_scale_does_not_retrace(guidance):
    c, u = jax.random.normal(jax.random.key(2), (2, 1, 2, 2, 2, 2))
    combine = jax.jit(guidance)
    weak, strong = (combine(c, u, jnp.float32(scale)) for scale in (3.0, 5.0))
    assert combine._cache_size() == 1
    # Both kinds are linear in the scale.
    np.testing.assert_allclose(strong - weak, weak - combine(c, u, jnp.float32(1.0)), atol=1e-5)


def test_make_guidance():
    assert make_guidance(PipelineConfig(is_cfg_zero_star=True)) == CfgZeroStar()
    assert make_guidance(PipelineConfig(is_distilled=True)) == ClassifierFree()
