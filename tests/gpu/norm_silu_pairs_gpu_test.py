"""Norm, activation and sums of frames on a Hopper GPU, at the sizes of the VAE's levels and at odd ones."""

import jax
import jax.numpy as jnp
import pytest
from elementwise_cases import assert_gradient, guarded, normal

from pallas_kernels import devices
from pallas_kernels.norm_silu_pairs import norm_silu_pairs

pytestmark = pytest.mark.skipif(not devices.is_hopper(), reason="needs a Hopper GPU as the default device")

SHAPES = [
    (1, 5, 384, 640, 96),
    (1, 9, 96, 160, 192),
    (1, 5, 48, 80, 384),
    (1, 33, 48, 80, 96),
    (2, 4, 40, 56, 192),
    # Pixels that end inside a tile, of fewer than one tile, in clips of one and two frames.
    (1, 1, 24, 41, 96),
    (2, 1, 2, 4, 384),
    (1, 2, 8, 33, 384),
    (2, 2, 7, 8, 192),
    (3, 3, 5, 24, 96),
]


@jax.jit
def kernel(x, gamma):
    return norm_silu_pairs(x, gamma, implementation="pallas")


@jax.jit
def expected(x, gamma):
    x32 = x.astype(jnp.float32)
    z = x32 / jnp.maximum(jnp.linalg.norm(x32, axis=-1, keepdims=True), 1e-12) * x.shape[-1] ** 0.5
    y = jax.nn.silu(z * gamma.astype(jnp.float32))
    y = jnp.pad(y, ((0, 0), (2, x.shape[1] % 2), (0, 0), (0, 0), (0, 0)))
    pairs = (x.shape[1] + 1) // 2
    y0, y1, y2, y3 = (y[:, i : i + 2 * pairs : 2] for i in range(4))
    return tuple(d.astype(x.dtype) for d in (y0 - y2, y1 + y2, y2 - y1, y1 - y3))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums(shape):
    x, gamma = normal(0, *shape, mean=0.3), normal(1, shape[-1], mean=1.0)
    out = kernel(x, gamma)
    for got, want in zip(out, expected(x, gamma), strict=True):
        # Where terms nearly cancel, another last place of one of them is a larger part of the difference.
        assert got.shape == want.shape
        got, want = got.astype(jnp.float32), want.astype(jnp.float32)
        assert bool((jnp.abs(got - want) <= 2.0**-7 * jnp.abs(want) + 1e-5).all())
        assert float(jnp.linalg.norm(got - want)) <= 5e-4 * float(jnp.linalg.norm(want))
    for _ in range(2):
        for again, first in zip(guarded(lambda: kernel(x, gamma)), out, strict=True):
            assert bool(jnp.array_equal(again, first))


def test_a_pixel_of_zeros():
    x = normal(0, 1, 3, 8, 8, 96).at[0, :, 2, 3].set(0)
    for d in kernel(x, normal(1, 96)):
        assert not bool(jnp.any(d[0, :, 2, 3]))
        assert bool(jnp.isfinite(d).all())


@pytest.mark.parametrize("shape", [(1, 5, 24, 40, 96), (2, 1, 8, 9, 192)])
def test_gradients(shape):
    """The gradients equal those of the reference."""
    x, gamma = normal(0, *shape, mean=0.3), normal(1, shape[-1], mean=1.0)
    pairs = (shape[1] + 1) // 2
    weights = [normal(2 + i, shape[0], pairs, *shape[2:], dtype="float32") for i in range(4)]

    def gradients(implementation):
        def loss(x, gamma):
            parts = zip(weights, norm_silu_pairs(x, gamma, implementation=implementation), strict=True)
            return sum(jnp.vdot(w, d.astype(jnp.float32)) for w, d in parts)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, gamma)

    for got, want in zip(gradients("pallas"), gradients("xla"), strict=True):
        assert_gradient(got, want)
