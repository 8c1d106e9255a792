"""Taps return the streams of a plain loop and its gradients, and save nothing more than a loop without taps."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from helios_jax.parallel.memory import ATTENTION, scan_layers
from helios_jax.parallel.taps import Taps, check_taps

WIDTH, LAYERS, TOKENS, FIRST = 6, 5, 4, 1
REMATS = ("none", "full", "attention", "offload")


def select(x):
    """All tokens but the first."""
    return x[FIRST:]


def body(x, layer, shift):
    """A layer with a trained and a frozen weight and a shared constant."""
    kept = checkpoint_name(jnp.tanh(x @ layer["trained"]), ATTENTION)
    return jnp.sin(kept @ layer["frozen"] + shift) + x


def scanned(taps, remat, x, trained, frozen, shift):
    return scan_layers(body, x, {"trained": trained, "frozen": frozen}, shift, remat, taps)


def looped(layers, x, trained, frozen, shift):
    streams = []
    for index in range(LAYERS):
        x = body(x, {"trained": trained[index], "frozen": frozen[index]}, shift)
        if index in layers:
            streams.append(select(x))
    return x, jnp.stack(streams)


def draws():
    """x, trained, frozen, shift."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (TOKENS, WIDTH), (LAYERS, WIDTH, WIDTH), (LAYERS, WIDTH, WIDTH), (WIDTH,)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def weighted(results, of_x, of_streams):
    """A number that depends on every result with a weight of its own."""
    return sum(
        scale * (jnp.cos(jnp.arange(result.size, dtype=jnp.float32)).reshape(result.shape) * result).sum()
        for scale, result in zip((of_x, of_streams), results, strict=True)
        if scale
    )


@pytest.mark.parametrize(
    ("remat", "layers", "scales"),
    [(remat, (1, 3), (1, 1)) for remat in REMATS]
    + [
        ("offload", (0, 1, 4), (1, 2)),
        ("full", (0, 4), (0, 1)),
        ("offload", (2,), (0, 1)),
        ("offload", (0, 3), (1, 0)),
    ],
)
def test_streams_and_gradients_are_those_of_a_plain_loop(remat, layers, scales):
    """With a scale of 0 the result is not used, and its cotangent is a symbolic zero."""
    taps = Taps(layers=layers, select=select)

    def loss(function, *arguments):
        results = function(*arguments)
        return weighted(results, *scales), results

    arguments, wanted = draws(), (1, 2, 4)
    differentiate = jax.value_and_grad(loss, wanted, has_aux=True)
    scan, loop = functools.partial(scanned, taps, remat), functools.partial(looped, layers)
    (_, found), gradients = jax.jit(functools.partial(differentiate, scan))(*arguments)
    (_, expected), expected_gradients = differentiate(loop, *arguments)
    for one, other in zip((*found, *gradients), (*expected, *expected_gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * float(jnp.abs(other).max()))


def stacked(taps, remat):
    """Arrays with an element for every layer that the loops of a gradient return, by shape and dtype."""
    x, trained, frozen, shift = draws()

    def loss(x, trained):
        x, streams = scanned(taps, remat, x, trained, frozen, shift)
        return x.sum() + (0 if streams is None else (streams**2).sum())

    counts = collections.Counter()
    for equation in equations(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, trained).jaxpr):
        if equation.primitive.name == "scan" and not equation.params["reverse"]:
            outputs = [variable.aval for variable in equation.outvars]
            counts.update((aval.shape, str(aval.dtype)) for aval in outputs if aval.shape[:1] == (LAYERS,))
    return counts


@pytest.mark.parametrize("remat", REMATS)
def test_nothing_more_is_saved(remat):
    plain = stacked(None, remat)
    assert plain[((LAYERS, TOKENS, WIDTH), "float32")] >= 1
    assert stacked(Taps(layers=(1, 3), select=select), remat) == plain


@pytest.mark.parametrize("remat", ["none", "full", "attention"])
def test_without_taps_there_is_only_the_plain_scan(remat):
    names = {"full": [], "attention": [ATTENTION]}

    def plain(x, trained, frozen, shift):
        one = body
        if remat in names:
            policy = jax.checkpoint_policies.save_only_these_names(*names[remat])
            one = jax.checkpoint(body, policy=policy, prevent_cse=False)
        layers = {"trained": trained, "frozen": frozen}
        return jax.lax.scan(lambda x, layer: (one(x, layer, shift), None), x, layers)[0]

    def lowered(function):
        return jax.jit(jax.grad(lambda *args: function(*args).sum(), (0, 1))).lower(*draws()).as_text()

    def ours(*args):
        return scanned(None, remat, *args)[0]

    assert lowered(ours).replace("jit__lambda_", "") == lowered(plain).replace("jit__lambda_", "")


@pytest.mark.parametrize("taps", [(1, 1), (2, 1), (-1,), (5,)])
def test_impossible_taps_are_refused(taps):
    with pytest.raises(ValueError, match=r"increasing numbers of layers, from 0 to 4"):
        check_taps(taps, LAYERS)


def equations(jaxpr):
    """All equations, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)
