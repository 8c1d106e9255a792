"""Stage 3, consistency distillation: exact teachers, closed forms, and what gradients reach."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from method_cases import EXECUTION, LAYOUT, latent_batch, networks, silent_networks

from helios_jax.config import SchedulerConfig
from helios_jax.diffusion.pyramid import pyramid_levels
from helios_jax.distillation.grids import merged_schedules
from helios_jax.training.injection import ContextDrop, Injection
from helios_jax.training.methods.consistency import Consistency
from helios_jax.training.methods.pyramid import level_paths
from helios_jax.training.procedure import Procedure
from helios_jax.training.taught import Judged, Judges

METHOD = Consistency(
    context=Injection(layout=LAYOUT, drop=ContextDrop(t2v=0.0, i2v=0.0, v2v=0.0), corruption=None, saturation=None),
    guidance_scale=3.0,
)
NEGATIVE = jnp.asarray(np.random.default_rng(5).standard_normal((1, 5, 32)), jnp.float32)


def constant_networks(value: float):
    """Networks whose velocity is one constant, whatever they are given."""
    constant = silent_networks()
    constant.transformer.proj_out.bias[...] = jnp.full_like(constant.transformer.proj_out.bias[...], value)
    return constant


def draws_of(batch, u):
    keys = jax.random.split(jax.random.key(0), len(batch.target))
    draws = METHOD.draw(batch, keys, keys[0])
    return dataclasses.replace(draws, u=jnp.broadcast_to(jnp.asarray(u, jnp.float32), draws.u.shape))


def loss(method, student, teacher, average, batch, draws, negative=NEGATIVE):
    """``method.loss_from_draws``, compiled once per method and shape."""
    graph = nnx.split(student)[0]  # all networks here have the same structure
    states = [nnx.split(network)[1] for network in (student, teacher, average)]
    return _loss(method, graph, states, negative, batch, draws)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss(method, graph, states, negative, batch, draws):
    student, teacher, average = (nnx.merge(graph, state) for state in states)
    judges = Judges(teacher=teacher, average=average, negative=negative)
    return method.loss_from_draws(student, judges, batch, draws, EXECUTION)


def grids(batch):
    config = networks().transformer.config
    sizes = {"frames": batch.target.shape[1], "size": batch.target.shape[2:4]}
    steps = {"student_steps": METHOD.student_steps, "teacher_steps": METHOD.teacher_steps}
    return merged_schedules(METHOD.scheduler, config, **steps, **sizes)


@pytest.mark.parametrize("u", [0.0, 0.37, 0.999])
def test_an_exact_straight_teacher_asks_for_no_change(u):
    """All points of a straight trajectory have one end point, from the first step to the last."""
    batch, same = latent_batch(2), constant_networks(0.7)
    value, _ = loss(METHOD, same, same, same, batch, draws_of(batch, u))
    assert float(value) < 1e-9


@pytest.mark.parametrize("u", [0.0, 0.5, 0.999])
def test_loss_of_constant_velocities(u):
    """f - f' = (s - r) b + r c - s a for velocities a of the student, b of the teacher and c of the average."""
    batch = latent_batch(2)
    a, b, c = 0.2, -0.4, 0.9
    given = (constant_networks(velocity) for velocity in (a, b, c))
    value, metrics = loss(METHOD, *given, batch, draws_of(batch, u))
    squares = []
    for level, merged in enumerate(grids(batch)):
        sigmas = merged.schedule.sigmas
        k = int(u * (len(sigmas) - 1))
        s, r = sigmas[k], sigmas[k + 1]
        squares.append(((s - r) * b + r * c - s * a) ** 2)
        # Of numbers near 1, whose difference is small at the last step.
        assert float(metrics[f"level{level}/mse"]) == pytest.approx(squares[-1], rel=1e-3, abs=1e-9)
    assert float(value) == pytest.approx(40 * np.mean(squares), rel=1e-3, abs=1e-8)
    assert sigmas[-1] == 0  # at u = 0.999 the target is the teacher's own end point


@pytest.mark.slow
def test_the_student_is_drawn_to_the_teachers_end_point_at_the_last_step():
    """Against a second derivation: at the last step the target is x - s u with the guided velocity u."""
    batch, u = latent_batch(1), 0.999
    student, teacher = silent_networks(), networks()
    draws = draws_of(batch, u)
    value, _ = loss(METHOD, student, teacher, networks(), batch, draws)
    history = METHOD.context.history(batch, draws.context)
    module, squares = teacher.transformer, []
    paths = level_paths(pyramid_levels(METHOD.scheduler), batch.target, draws.noise)
    for path, merged in zip(paths, grids(batch), strict=True):
        s, t = merged.schedule.sigmas[-2], np.floor(merged.schedule.timesteps[-1])
        x = (1 - s) * path.end + s * path.start
        with_text, without = (
            module(x, jnp.full(1, t, jnp.float32), embeds, history.tiers(LAYOUT), LAYOUT)
            for embeds in (batch.text.embeds, NEGATIVE)
        )
        squares.append(np.mean(np.square(s * np.asarray(without + 3.0 * (with_text - without)))))
    assert float(value) == pytest.approx(40 * np.mean(squares), rel=1e-3)


@pytest.mark.slow
def test_gradients_reach_the_student_alone():
    batch = latent_batch(1)
    draws, module = draws_of(batch, 0.4), networks()
    graph, state = nnx.split(module)

    def value(student, teacher, average):
        judges = Judges(teacher=nnx.merge(graph, teacher), average=nnx.merge(graph, average), negative=NEGATIVE)
        return METHOD.loss_from_draws(nnx.merge(graph, student), judges, batch, draws, EXECUTION)[0]

    student, average = jax.jit(jax.grad(value, argnums=(0, 2)))(state, state, state)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(student)) > 1e-3
    assert all(not leaf.any() for leaf in jax.tree.leaves(average))


@pytest.mark.slow
def test_without_guidance_there_is_no_negative_prompt():
    batch = latent_batch(1)
    draws = draws_of(batch, 0.4)
    plain = dataclasses.replace(METHOD, guidance_scale=1.0)
    one = loss(METHOD, silent_networks(), networks(), networks(), batch, draws, batch.text.embeds)[0]
    other = loss(plain, silent_networks(), networks(), networks(), batch, draws, None)[0]
    assert float(one) == pytest.approx(float(other), rel=1e-4)  # guided by the prompt itself


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheduler": SchedulerConfig.mid()}, "has the solver 'unipc'; a few-step student has 'dmd'"),
        ({"student_steps": (2, 2)}, "this model needs 3 numbers"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"weight": 0.0}, r"method\.weight=0"),
    ],
)
def test_settings_are_checked(settings, message):
    assert isinstance(METHOD, Procedure)
    assert isinstance(METHOD, Judged)
    with pytest.raises(ValueError, match=message):
        Consistency(**settings)
