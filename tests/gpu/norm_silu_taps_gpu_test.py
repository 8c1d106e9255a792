"""Norm, activation and taps on a Hopper GPU, at the sizes of the VAE's levels and at odd ones."""

import jax
import jax.numpy as jnp
import pytest
from elementwise_cases import assert_close_on_device, assert_gradient, guarded, normal

from pallas_kernels import compat
from pallas_kernels.norm_silu_taps import norm_silu_taps, runs_as_kernel

pytestmark = pytest.mark.skipif(not compat.is_hopper(), reason="needs a Hopper GPU as the default device")

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
    return norm_silu_taps(x, gamma, implementation="pallas")


@jax.jit
def activated(x, gamma):
    """What lies in the taps, rounded."""
    x, gamma = x.astype(jnp.float32), gamma.astype(jnp.float32)
    z = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) * gamma * x.shape[-1] ** 0.5
    return jax.nn.silu(z).astype(jnp.bfloat16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_taps(shape):
    frames, channels = shape[1], shape[-1]
    x, gamma = normal(0, *shape, mean=0.3), normal(1, channels, mean=1.0)
    assert runs_as_kernel(x, gamma)
    out = kernel(x, gamma)
    assert out.shape == (*shape[:-1], 3 * channels)
    two_back, one_back, present = (out[..., tap * channels : (tap + 1) * channels] for tap in range(3))
    assert_close_on_device(present, activated(x, gamma))
    # The other taps are copies; in front of the clip are zeros.
    for later, copies in ((1, one_back), (2, two_back)):
        assert not bool(jnp.any(copies[:, :later]))
        assert bool(jnp.array_equal(copies[:, later:], present[:, : max(frames - later, 0)]))

    for _ in range(2):
        (again,) = guarded(lambda: (kernel(x, gamma),))
        assert bool(jnp.array_equal(out, again))


def test_a_pixel_of_zeros():
    x = normal(0, 1, 3, 8, 8, 96).at[0, 1, 2, 3].set(0)
    out = kernel(x, normal(1, 96))
    assert not bool(jnp.any(out[0, 1, 2, 3, 192:]))
    assert bool(jnp.isfinite(out).all())


@pytest.mark.parametrize("shape", [(1, 5, 24, 40, 96), (2, 1, 8, 9, 192)])
def test_gradients(shape):
    """Equal to those of the reference."""
    x, gamma = normal(0, *shape, mean=0.3), normal(1, shape[-1], mean=1.0)
    weight = normal(2, *shape[:-1], 3 * shape[-1], dtype="float32")

    def gradients(implementation):
        def loss(x, gamma):
            out = norm_silu_taps(x, gamma, implementation=implementation)
            return jnp.vdot(out.astype(jnp.float32), weight)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, gamma)

    for got, want in zip(gradients("pallas"), gradients("xla"), strict=True):
        assert_gradient(got, want)
