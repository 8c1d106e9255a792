"""Gradients are those of a plain loop for every setting, and each setting keeps what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from helios_jax.parallel.memory import ATTENTION, scan_layers

WIDTH, LAYERS = 6, 5


def body(x, layer, constants):
    """A layer with a trained and a frozen weight, and a shared constant next to one that is not differentiated."""
    shift, sign = constants
    kept = checkpoint_name(jnp.tanh(x @ layer["trained"]), ATTENTION)
    return jnp.sin(kept @ layer["frozen"] + shift) * sign + x


def loop(x, trained, frozen, shift):
    """The plain loop."""
    for index in range(LAYERS):
        x = body(x, {"trained": trained[index], "frozen": frozen[index]}, (shift, -1.0))
    return x


def draws():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (3, WIDTH), (LAYERS, WIDTH, WIDTH), (LAYERS, WIDTH, WIDTH), (WIDTH,)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("wanted", [(0, 1), (1, 3), (3,), (0, 1, 2, 3)])
@pytest.mark.parametrize("remat", ["none", "full", "attention", "offload"])
def test_gradients_are_those_of_a_plain_loop(remat, wanted):
    def scanned(x, trained, frozen, shift):
        layers = {"trained": trained, "frozen": frozen}
        return scan_layers(body, x, layers, (shift, jnp.float32(-1.0)), remat)[0]

    arguments = draws()
    result, gradients = jax.jit(jax.value_and_grad(lambda *args: scanned(*args).sum(), wanted))(*arguments)
    expected, expected_gradients = jax.value_and_grad(lambda *args: loop(*args).sum(), wanted)(*arguments)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    for one, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * float(jnp.abs(other).max()))


def test_only_the_stream_and_the_named_values_go_to_the_host():
    x, trained, frozen, shift = draws()

    def loss(x, trained):
        return scan_layers(body, x, {"trained": trained, "frozen": frozen}, (shift, jnp.float32(1.0)), "offload")[
            0
        ].sum()

    stacks = [
        variable.aval
        for equation in equations(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, trained).jaxpr)
        if equation.primitive.name == "scan"
        for variable in equation.outvars
        if variable.aval.memory_space == jax.memory.Space.Host
    ]
    # x and tanh(...); neither weights nor other values of the layer.
    assert [aval.shape for aval in stacks] == [(LAYERS, 3, WIDTH)] * 2


def test_gradients_of_frozen_weights_are_not_computed():
    x, trained, frozen, shift = draws()

    def loss(trained):
        return scan_layers(body, x, {"trained": trained, "frozen": frozen}, (shift, jnp.float32(1.0)), "offload")[
            0
        ].sum()

    stacks = [
        variable.aval.shape
        for equation in equations(jax.make_jaxpr(jax.grad(loss))(trained).jaxpr)
        if equation.primitive.name == "while"
        for variable in equation.outvars
    ]
    assert stacks.count((LAYERS, WIDTH, WIDTH)) == 1


def equations(jaxpr):
    """All equations, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)
