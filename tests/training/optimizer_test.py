"""The optimizer against recorded updates of PyTorch (tests/parity/record_adamw.py), and its rules by parameter."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helios_jax.training.optimizer import AdamW

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "parity" / "data" / "adamw" / "updates.npz")
NAMES = ("a/kernel", "b/bias")

STAGE_1 = AdamW(learning_rate=5e-5)
LARGE = AdamW(learning_rate=3e-2, betas=(0.0, 0.999), weight_decay=1e-1, clip_norm=0.5, warmup_steps=5)


@pytest.mark.parametrize(("setting", "adamw"), [("stage1", STAGE_1), ("large", LARGE)])
def test_updates_are_those_of_torch(setting, adamw):
    params = {name: jnp.asarray(RECORDED[f"start/{name}"]) for name in NAMES}
    optimizer = adamw.build(NAMES, total_steps=100)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(12):
        gradients = {name: jnp.asarray(RECORDED[f"gradients/{name}"][step]) for name in NAMES}
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name in NAMES:
            moved = np.abs(RECORDED[f"{setting}/{name}"][step] - RECORDED[f"start/{name}"]).max()
            np.testing.assert_allclose(
                params[name], RECORDED[f"{setting}/{name}"][step], rtol=0, atol=4e-7 + 1e-5 * moved
            )


def test_constant_schedule_warms_up_from_zero():
    rates = AdamW(learning_rate=1e-4, warmup_steps=1000).learning_rates(10**6)
    found = [float(rates(step)) for step in (0, 1, 500, 1000, 50_000)]
    assert found == pytest.approx([0.0, 1e-7, 5e-5, 1e-4, 1e-4])
    assert float(AdamW(learning_rate=5e-5).learning_rates(10)(0)) == pytest.approx(5e-5)


def test_cosine_schedule_ends_at_zero():
    rates = AdamW(learning_rate=2e-3, schedule="cosine", warmup_steps=10).learning_rates(110)
    found = [float(rates(step)) for step in (0, 5, 10, 35, 60, 110)]
    assert found == pytest.approx([0.0, 1e-3, 2e-3, 2e-3 * (1 + 2**-0.5) / 2, 1e-3, 0.0], abs=1e-9)


def test_factors_scale_rate_and_decay_by_first_matching_rule():
    adamw = AdamW(
        learning_rate=1e-2,
        weight_decay=0.5,
        clip_norm=0,
        lr_factors=((".*/kernel", 0.1),),
        decay_factors=((".*/bias", 0.0), (".*", 2.0)),
    )
    params = {"a/kernel": jnp.ones(3), "a/bias": jnp.ones(3), "c": jnp.ones(3)}
    optimizer = adamw.build(params, total_steps=10)
    # The first Adam update is the sign of the gradient.
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    expected = {"a/kernel": -1e-3 * (1 + 2 * 0.5), "a/bias": -1e-2, "c": -1e-2 * (1 + 2 * 0.5)}
    for name, value in expected.items():
        np.testing.assert_allclose(updates[name], value, rtol=1e-5)


def test_rules_without_effect_are_refused():
    with pytest.raises(ValueError, match=r"\['bias'\] decide nothing"):
        AdamW(learning_rate=1e-3, decay_factors=(("bias", 0.0),)).build(["a/bias"], 10)
    with pytest.raises(ValueError, match="decide nothing"):
        AdamW(learning_rate=1e-3, lr_factors=((".*", 1.0), ("a/bias", 0.5))).build(["a/bias"], 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"clip_norm": -1.0}, r"optimizer\.clip_norm=-1\.0 must be a finite number of at least 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdamW(**{"learning_rate": 1e-3} | settings)


def test_warmup_must_end_before_the_cosine():
    with pytest.raises(ValueError, match="must end before the last step of the cosine, 10"):
        AdamW(learning_rate=1e-3, schedule="cosine", warmup_steps=10).build(["a"], 10)


def test_no_first_moment_without_momentum():
    """The state has one array per parameter, and updates equal optax's AdamW with b1 = 0."""
    adamw = AdamW(learning_rate=1e-2, betas=(0.0, 0.99), weight_decay=0.1, clip_norm=0)
    params = {"w": jnp.linspace(-1, 1, 7)}
    optimizer, reference = adamw.build(params, 10), optax.adamw(1e-2, b1=0.0, b2=0.99, weight_decay=0.1)
    state, of_reference = optimizer.init(params), reference.init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 7
    for step in range(5):
        gradients = {"w": jnp.sin(jnp.arange(7.0) + step)}
        updates, state = optimizer.update(gradients, state, params)
        expected, of_reference = reference.update(gradients, of_reference, params)
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)
